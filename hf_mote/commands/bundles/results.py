"""Which experts of a ranking are used, and where results are written."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.commands import options as o
from hf_mote.commands.run_files import Work, check_output, config_of, writing_to
from hf_mote.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking

__all__ = ["Choosing", "Writing"]


@dataclasses.dataclass(frozen=True)
class Choosing:
    """Which of a ranking's first experts are examined, and which of them a config changes.

    Attributes:
        suppress (`int`, *optional*): `--suppress`; see [`config_of`].
        stimulate (`int`, *optional*): `--stimulate`.
        multiply (`int`, *optional*): `--multiply`.
        by (`float`, *optional*): `--by`.
        positions (`str`, *optional*): `--positions`.
        mode (`str`, *optional*, defaults to `"drop"`): `--mode`.
        top (`int`, *optional*): `--top`, the number of experts to examine closely.
    """

    suppress: o.Suppress = None
    stimulate: o.Stimulate = None
    multiply: o.Multiply = None
    by: o.By = None
    positions: o.Positions = None
    mode: o.Mode = "drop"
    top: o.Top = None

    def check(self, *, measured: bool = False) -> None:
        """Refuse options that do not make a config; see [`options.check_changes`].

        Args:
            measured (`bool`, *optional*, defaults to `False`): Whether the ranking is measured at the positions, so
                that they count without a config, too.
        """
        changes = (self.suppress, self.stimulate, self.multiply)
        if self.at is not None and not measured and all(number is None for number in changes):
            fix = "Give --suppress, --stimulate or --multiply too, which write a config."
            raise ConfigError("--positions", "belong to a config, and none is written", got=self.positions, fix=fix)
        o.check_changes(self.suppress, self.stimulate, self.mode, self.multiply, self.by)

    def check_experts(self, model: PreTrainedModel, **more: int | None) -> None:
        """Refuse numbers above the experts of a model; see [`options.check_experts`].

        Args:
            model (`PreTrainedModel`): The model.
            **more (`int`, *optional*): Further numbers, by the name of their option.
        """
        changed = {"suppress": self.suppress, "stimulate": self.stimulate, "multiply": self.multiply}
        o.check_experts(model, **changed, top=self.top, **more)

    def number(self, most: int) -> int:
        """Return the number of experts to examine closely.

        Args:
            most (`int`): The largest number possible.
        """
        return min(self.top or self.suppress or self.stimulate or self.multiply or 5, most)

    def config(self, ranking: ExpertRanking, *, base_model: str) -> MoTEConfig | None:
        """Return the config of the first experts, if an option requests one.

        Args:
            ranking (`ExpertRanking`): The ranking.
            base_model (`str`): The model as it was given.
        """
        return config_of(
            ranking,
            suppress=self.suppress,
            stimulate=self.stimulate,
            multiply=self.multiply,
            by=self.by,
            mode=self.mode,
            positions=self.at,
            base_model=base_model,
        )

    @property
    def at(self) -> list[int] | None:
        """The positions, as numbers."""
        if self.positions is None:
            return None
        return [int(number) for number in o.numbers_in("--positions", self.positions, int)]


@dataclasses.dataclass(frozen=True)
class Writing:
    """Where a command writes its results, and where it keeps its work before.

    Attributes:
        output (`Path`): `--output`; each field is the option of its name.
        run_folder (`Path`, *optional*): Where results are kept as they come.
        dry_run (`bool`, *optional*, defaults to `False`): Print what would be done, and write nothing.
        force (`bool`, *optional*, defaults to `False`): Replace what an earlier run wrote.
    """

    output: o.Output
    run_folder: o.RunFolder = None
    dry_run: o.DryRun = False
    force: o.Force = False

    def work(self) -> Work:
        """Return the place where the command keeps its work."""
        return Work(self.output, self.run_folder)

    def check(self) -> None:
        """Raise [`FileFormatError`] if the output or the run folder may not be written to."""
        check_output(self.output, force=self.force)
        self.work().check()

    def folder(self) -> AbstractContextManager[Path]:
        """Return the context manager that writes the output; see [`writing_to`]."""
        return writing_to(self.output, force=self.force)
