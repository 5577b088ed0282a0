"""`TunedValues`: learnt gains and biases of experts, apart from the model: file, card, exported config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, DataError, FileFormatError, HFMoTEError, mapping, real
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.config_card import MISUSE
from hf_mote.mote.fields import check_experts_of
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PARTS", "TunedValues"]

PARTS = ("log_gain", "bias")
"""The two tables that can be learnt."""
_KIND = "tunable_mote"
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class TunedValues(Shareable):
    """Learnt gains and biases of experts.

    Attributes:
        layers (`tuple[int, ...]`): Absolute decoder layer of each row, ascending.
        origin (`MoTEConfig`): A config without targets: fingerprint, name and provenance.
        log_gain (`torch.Tensor` of shape `(layers, experts)`, float32, *optional*): Natural logarithm of each gain.
        bias (`torch.Tensor` of shape `(layers, experts)`, float32, *optional*): Added to the router logits.

    Rows of layers with fewer experts than the layer with most end in zeros.

    Raises:
        [`ConfigError`]: if the parts do not belong together.
    """

    layers: tuple[int, ...]
    origin: MoTEConfig
    log_gain: Tensor | None = None
    bias: Tensor | None = None

    file_name: ClassVar[str] = "tunable_mote.safetensors"

    def __post_init__(self) -> None:
        where = "TunableMoTE"
        made = self.origin.fingerprint
        plain = MoTEConfig(fingerprint=made, base_model=self.origin.base_model, provenance=self.origin.provenance)
        if made is None or dataclasses.replace(self.origin, unverified=plain.unverified) != plain:
            # A strength, a scope or positions would hold for the exported config and not for the trained parameters.
            raise ConfigError(f"{where}.origin", "must have a fingerprint, name and provenance, and nothing else")
        known = made["layers"]
        # Values that equal a whole number, such as True, are none.
        numbers = all(type(layer) is int for layer in self.layers)
        if not self.layers or not numbers or list(self.layers) != [layer for layer in known if layer in self.layers]:
            expected = f"some of {known}, ascending, each once"
            raise ConfigError(f"{where}.layers", "must be layers of the model", got=self.layers, expected=expected)
        if not self.tables:
            raise ConfigError(where, "must have gains, biases or both", got="neither", fix="Give gain=True.")
        shape = (len(self.layers), max(self.num_experts))
        for name, table in self.tables.items():
            if table.dtype != torch.float32 or tuple(table.shape) != shape:
                got = f"{table.dtype} {tuple(table.shape)}"
                raise ConfigError(f"{where}.{name}", "must be a table", got=got, expected=f"torch.float32 {shape}")

    @property
    def tables(self) -> dict[str, Tensor]:
        """The tables that it has, by name."""
        return {name: table for name in PARTS if (table := getattr(self, name)) is not None}

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each layer."""
        made: dict[str, Any] = self.origin.fingerprint or {}
        by_layer = dict(zip(made["layers"], made["num_experts"], strict=True))
        return tuple(by_layer[layer] for layer in self.layers)

    def check_finite(self) -> None:
        """Raise [`DataError`] if a value is not finite, as after a training run that diverged."""
        for name, table in self.tables.items():
            wrong = (~table.isfinite()).nonzero()
            if len(wrong):
                row, expert = wrong[0].tolist()
                raise DataError(
                    f"TunableMoTE.{name}",
                    "must be finite",
                    got=f"{float(table[row, expert])} for [{self.layers[row]}, {expert}]",
                    fix="Train again with a lower learning rate, or gradients that are clipped.",
                )

    def to_config(self, threshold: float = 0.0) -> MoTEConfig:
        """Return the config with the same gains and biases; see [`TunableMoTE.to_config`].

        Args:
            threshold (`float`, *optional*, defaults to 0.0): Largest change of an expert that is left out.
        """
        real("TunableMoTE.to_config.threshold", threshold, least=0)
        self.check_finite()
        gains: list[list[Any]] = []
        biases: list[list[Any]] = []
        left_out = 0
        largest = 0.0
        for row, (layer, num_experts) in enumerate(zip(self.layers, self.num_experts, strict=True)):
            # Row by row on the table's device, as the router's hook does: another layout could round otherwise.
            logs = None if self.log_gain is None else self.log_gain[row, :num_experts]
            factors = [1.0] * num_experts if logs is None else logs.exp().tolist()
            changes = [0.0] * num_experts if logs is None else logs.abs().tolist()
            added = [0.0] * num_experts if self.bias is None else self.bias[row].tolist()
            for expert in range(num_experts):
                change = max(changes[expert], abs(added[expert]))
                if change <= threshold:
                    left_out += change > 0
                    largest = max(largest, change)
                    continue
                if factors[expert] != 1:
                    gains.append([layer, expert, factors[expert]])
                if added[expert] != 0:
                    biases.append([layer, expert, added[expert]])
        made: dict[str, Any] = {"method": "training of gains and biases"}
        if threshold:
            made |= {"threshold": float(threshold), "left_out": left_out, "largest_left_out": largest}
        provenance = {**self.origin.provenance, **made}
        return dataclasses.replace(self.origin, gain=gains, bias=biases, provenance=provenance)

    def _public(self, *, with_texts: bool) -> Self:
        return dataclasses.replace(self, origin=self.origin._public(with_texts=with_texts))

    def _to_file(self, path: Path) -> None:
        metadata = {
            "kind": _KIND,
            "layers": list(self.layers),
            "origin": self.origin.to_dict(),
            "tables": list(self.tables),
        }
        write_tensors(path, self.tables, metadata)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            tables = metadata["tables"]
            if (
                not isinstance(tables, list)
                or sorted(map(str, tables)) != sorted(tensors)
                or set(tensors) - set(PARTS)
            ):
                got, expected = ", ".join(sorted(tensors))[:80], f"those of {tables!r}"[:80]
                raise FileFormatError(str(path), "must hold the tables that it names", got=got, expected=expected)
            origin = MoTEConfig.from_dict(mapping("origin", metadata["origin"]))
            values = cls(tuple(metadata["layers"]), origin, **tensors)
            values.check_finite()
            made = origin.fingerprint or {}
            check_experts_of("TunableMoTE", values.layers, max(values.num_experts), made, values.tables)
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError) as error:
            raise FileFormatError(str(path), "holds no learnt gains", got=str(error).rstrip(".")) from error
        return values

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        config = self.to_config()
        name = config.base_model or "a model that is not named"
        made = "\n".join(f"- {key}: {value}" for key, value in sorted(config.provenance.items()))
        parts = []
        for what, entries, neutral in (("gain", config.gain, 1.0), ("bias", config.bias, 0.0)):
            if entries:
                most = sorted(entries, key=lambda entry: abs(entry[2] - neutral), reverse=True)[:_SHOWN]
                shown = ", ".join(f"[{layer}, {expert}]: {value:.3g}" for layer, expert, value in most)
                parts.append(f"| {what} | {len(entries)} | {shown} |")
        rows = "\n".join(parts) or "| none | 0 | |"
        return compose_card(
            card_header(tags=["mote"], base_model=config.base_model, notes=notes, name=name, evidence=evidence),
            "Tunable mixture of experts",
            f"For `{name}`: gains on routing weights and biases on router logits of {len(self.layers)} layers, learnt "
            "by gradient while the model stayed as it was. What they do was not measured for this card.\n\n"
            f"| what | experts | [layer, expert] that changed most |\n| --- | --- | --- |\n{rows}\n\n"
            "`tunable_mote.safetensors` holds the parameters, to train on; `mote_config.json` the same as a config. "
            "Both are checked against the model's type, layers, experts and weights. They are data: loading "
            "them runs no code.",
            load="from hf_mote import TunableMoTE, apply_mote\n\n"
            'handle = apply_mote(model, "<this repository or folder>")\n'
            '# or, to train on:\ntunable = TunableMoTE.from_pretrained("<this repository or folder>", model)',
            notes=notes,
            evidence=evidence,
            sections={"How it was made": made},
            intended_use="Studying what the experts do in the model it was made for; no other use is stated.",
            misuse=MISUSE,
        )
