"""`MoTEConfig`: which experts are suppressed, stimulated, biased or scaled, how, when, and for which model.

The config is the small file that people share: JSON-native values only, checked when it is made, when it is read and
again when it meets a model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import transformers
from torch import nn

from hf_mote.errors import ConfigError, FileFormatError, one_of
from hf_mote.hub import Shareable, public_name, read_json, write_json
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config_card import beside_config, config_card
from hf_mote.mote.fields import (
    FLOAT32_MAX,
    TARGETS,
    checked_fingerprint,
    gain_at,
    json_copy,
    number,
    pairs,
    token_pair,
    token_positions,
    triples,
)
from hf_mote.printing import Printable, Summary, experts_in_words, frame_of
from hf_mote.routing.sites.fingerprint import SAMPLED, check_fingerprint, same_weights
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.sampled_weights import differing
from hf_mote.sharing.cards import CardNotes, Evidence, evidence_of
from hf_mote.sharing.privacy import without_places
from hf_mote.version import STAMPS, __version__, lacking

if TYPE_CHECKING:
    from typing import Self

    from pandas import DataFrame

__all__ = ["CHOICES", "MoTEConfig"]

SCHEMA_VERSION = 1
CHOICES = {
    "suppress_mode": ("drop", "reroute", "zero"),
    "bias_on": ("logits", "selection"),
    "scope": ("all", "prompt", "generation", "thinking", "answer"),
}
# Fields that are written only where they are used, so that earlier versions read all others, and their defaults.
_WHERE_USED: dict[str, Any] = {"unverified": None, "gain": [], "positions": None}
_OTHER_WEIGHTS = "allow_other_weights"


@dataclass(frozen=True, repr=False)
class MoTEConfig(Printable, Shareable):
    """A mixture of tunable experts: what to change in a model's routing.

    Layers are absolute decoder layers, experts are indices within their layer; shared experts are never targets. With
    router weights `w` of the chosen experts `K` of one token:

    Args:
        suppress (`list[[int, int]]`, *optional*):
            `[layer, expert]` pairs to switch off.
        stimulate (`list[[int, int]]`, *optional*):
            `[layer, expert]` pairs that are always chosen, each in the place of the weakest chosen expert that is not
            suppressed.
        bias (`list[[int, int, float]]`, *optional*):
            `[layer, expert, value]` triples; the value is added as `bias_on` says.
        suppress_mode (`str`, *optional*, defaults to `"drop"`):
            `"drop"`: after selection, `w = 0` for suppressed experts and the survivors are scaled so that the weights
            sum to what they did; no other expert takes the slot (the paper's). `"reroute"`: suppressed experts leave
            the selection before the group limit and top-k, the next best takes the slot, and the weights follow the
            family's own rule (a group that is ranked by its two best experts and has one left is ranked by that one).
            `"zero"`: `w = 0` and nothing else changes.
        stimulate_weight (`str` or `float`, *optional*, defaults to `"own"`):
            Weight of stimulated experts: what the family's rule gives them (`"own"`), the largest weight among those
            chosen (`"max"`), or this number.
        bias_on (`str`, *optional*, defaults to `"logits"`):
            `"logits"`: added to the router logits, so that weights change too; `"selection"`: added to the selection
            scores alone.
        scope (`str`, *optional*, defaults to `"all"`):
            `"prompt"`, `"generation"` (tokens fed back one by one), or both; or, by `thinking_tokens`, `"thinking"`
            (from the token that opens it to before the one that closes it) or `"answer"` (from that one on).
        thinking_tokens (`list[int]`, *optional*):
            Ids of the tokens that open and close the model's thinking; required by these two scopes.
        strength (`float`, *optional*, defaults to 1.0):
            Dose, not negative. Suppressed experts keep `1 - strength` of their weight (so at most 1 with `suppress`;
            `"reroute"` cannot be graded and takes 0 or 1); biases and the weights of stimulated experts are
            multiplied by it; a gain becomes `1 + strength * (gain - 1)`, which must not be negative. 0 attaches
            nothing; above 0 a stimulated expert takes its slot at any strength, so that a dose-response curve need not
            start at 0.
        fingerprint (`dict`, *optional*):
            The model it was made for; see [`MoTEConfig.for_model`]. Checked when the config meets a model.
        base_model (`str`, *optional*):
            Name of that model, for the card.
        provenance (`dict`, *optional*):
            How the experts were found and what was measured; JSON-native.
        unverified (`str`, *optional*):
            Why it cannot be checked against a model, as for a finding that was published without its weights. Such a
            config is applied only with `allow_other_weights=True`.
        gain (`list[[int, int, float]]`, *optional*):
            `[layer, expert, value]` triples; where the router chose the expert, its weight is multiplied by the value,
            0 or more, and nothing else changes: 0 is the same as suppression by `"zero"`, 1 changes nothing. An expert
            with a gain may have a bias too, but can be neither suppressed nor stimulated. One with a gain below 1
            keeps its slot, as a suppressed one does, when a stimulated expert needs one.
        positions (`list[int]`, *optional*):
            Act only at these tokens of each sequence, by default at all tokens of the scope: 0, 1, ... from its first
            token on, prompt and generated tokens alike; -1, -2, ... from the last token of the prompt back. Padding is
            not counted. They go with the scopes `"all"` and `"prompt"`; with the latter no generated token counts. A
            pass without a cache that is not of `generate` is all prompt, so that negative positions move with its end.

    Raises:
        [`ConfigError`]: if a field is malformed; the message names it.

    Source: Dahlke et al., "Mixture of Tunable Experts", arXiv 2502.11096; gains are those of RICE,
    arXiv 2505.14681; the modes beside `"drop"` and the strength are this package's.

    Example:

    ```python
    from hf_mote import MoTEConfig

    config = MoTEConfig(suppress=[[3, 7], [2, 1]])
    assert config.suppress == [[2, 1], [3, 7]]
    assert MoTEConfig.from_dict(config.to_dict()) == config
    ```
    """

    suppress: list[list[int]] = field(default_factory=list)
    stimulate: list[list[int]] = field(default_factory=list)
    bias: list[list[Any]] = field(default_factory=list)
    suppress_mode: Literal["drop", "reroute", "zero"] = "drop"
    stimulate_weight: Literal["own", "max"] | float = "own"
    bias_on: Literal["logits", "selection"] = "logits"
    scope: Literal["all", "prompt", "generation", "thinking", "answer"] = "all"
    thinking_tokens: list[int] | None = None
    strength: float = 1.0
    fingerprint: dict[str, Any] | None = None
    base_model: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    unverified: str | None = None
    gain: list[list[Any]] = field(default_factory=list)
    positions: list[int] | None = None

    file_name: ClassVar[str] = "mote_config.json"

    def __post_init__(self) -> None:
        for name in ("suppress", "stimulate"):
            object.__setattr__(self, name, pairs(name, getattr(self, name)))
        for name in ("bias", "gain"):
            object.__setattr__(self, name, triples(name, getattr(self, name)))
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ConfigError(f"MoTEConfig.{name}", "unknown value", got=repr(value), expected=f"one of {allowed}")
        if self.thinking_tokens is not None:
            object.__setattr__(self, "thinking_tokens", token_pair("thinking_tokens", self.thinking_tokens))
        by_part = self.scope in ("thinking", "answer")
        if by_part != (self.thinking_tokens is not None):
            raise ConfigError(
                "MoTEConfig.thinking_tokens",
                "goes with the scopes 'thinking' and 'answer'",
                got=f"{self.thinking_tokens} with scope {self.scope!r}",
                expected="the ids of the tokens that open and close the thinking" if by_part else None,
                fix='For example tokenizer.convert_tokens_to_ids(["<think>", "</think>"]).' if by_part else None,
            )
        if self.positions is not None:
            object.__setattr__(self, "positions", token_positions("MoTEConfig.positions", self.positions))
            if self.scope not in ("all", "prompt"):
                what = "go with the scopes 'all' and 'prompt', as they are counted from where the text begins"
                raise ConfigError("MoTEConfig.positions", what, got=f"{self.positions} with scope {self.scope!r}")
        if self.stimulate_weight not in ("own", "max"):
            weight = number("stimulate_weight", self.stimulate_weight, "'own', 'max' or a number")
            if weight < 0:
                raise ConfigError("MoTEConfig.stimulate_weight", "is negative", got=weight, expected="0 or more")
            object.__setattr__(self, "stimulate_weight", weight)
        strength = number("strength", self.strength, "a number, 0 or more")
        object.__setattr__(self, "strength", strength)
        if strength < 0 or (strength > 1 and self.suppress):
            limit = "0 to 1, as more than the whole weight cannot be taken away" if self.suppress else "0 or more"
            raise ConfigError("MoTEConfig.strength", "out of range", got=strength, expected=limit)
        if self.suppress and self.suppress_mode == "reroute" and strength not in (0.0, 1.0):
            raise ConfigError(
                "MoTEConfig.strength",
                "suppress_mode 'reroute' cannot be graded",
                got=strength,
                expected="0 or 1",
                fix="Use suppress_mode 'drop' or 'zero' for a graded dose, or a negative bias on the selection.",
            )
        largest = max((abs(value) for _, _, value in self.bias), default=0.0)
        weight = self.stimulate_weight if isinstance(self.stimulate_weight, float) else 0.0
        if max(largest, weight) * strength > FLOAT32_MAX:
            got = f"{max(largest, weight)} x {strength}"
            raise ConfigError("MoTEConfig.strength", "times a bias or weight must be a float32", got=got)
        self._check_gains()
        both = sorted(set(map(tuple, self.suppress)) & set(map(tuple, self.stimulate)))
        if both:
            raise ConfigError(
                "MoTEConfig.stimulate", "the same expert is suppressed", got=list(both[0]), fix="Remove it from one."
            )
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", checked_fingerprint(self.fingerprint))
        if self.base_model is not None and not isinstance(self.base_model, str):
            raise ConfigError(
                "MoTEConfig.base_model", "is not text", got=repr(self.base_model), expected="str or None"
            )
        if self.unverified is not None and not (isinstance(self.unverified, str) and self.unverified.strip()):
            raise ConfigError(
                "MoTEConfig.unverified", "must state a reason", got=repr(self.unverified), expected="a text"
            )
        if not isinstance(self.provenance, Mapping):
            raise ConfigError("MoTEConfig.provenance", "is not a dict", got=type(self.provenance).__name__)
        object.__setattr__(self, "provenance", json_copy("provenance", dict(self.provenance)))

    def _check_gains(self) -> None:
        """Refuse gains that are negative, by themselves or at the strength, and experts that have another part."""
        parts = {name: set(map(tuple, getattr(self, name))) for name in ("suppress", "stimulate")}
        for layer, expert, value in self.gain:
            entry = [layer, expert, value]
            if value < 0:
                what = "is negative, and a weight is multiplied by it"
                raise ConfigError("MoTEConfig.gain", what, got=entry, expected="a value of 0 or more")
            for name, members in parts.items():
                if (layer, expert) in members:
                    what = f"the same expert is in {name}"
                    fix = "Remove it from one; a gain of 0 is what suppress_mode 'zero' does."
                    raise ConfigError("MoTEConfig.gain", what, got=entry[:2], fix=fix)
            factor = gain_at(value, self.strength)
            if not 0 <= factor <= FLOAT32_MAX:
                what = "makes a gain negative" if factor < 0 else "makes a gain no float32"
                got = f"1 + {self.strength:g} x ({value:g} - 1) = {factor:g} for {entry[:2]}"
                limit = f"at most {1 / (1 - value):g}" if value < 1 else None
                raise ConfigError("MoTEConfig.strength", what, got=got, expected=limit)

    @property
    def targets(self) -> list[tuple[int, int]]:
        """The experts that it names, as (layer, expert), one for each entry of its lists."""
        return [(entry[0], entry[1]) for name in TARGETS for entry in getattr(self, name)]

    @property
    def is_empty(self) -> bool:
        """Whether applying the config changes nothing: no targets, or strength 0."""
        return self.strength == 0 or not self.targets

    @classmethod
    def for_model(cls, model: nn.Module, **fields: Any) -> Self:
        """Return a config stamped with a model's fingerprint and checked against it.

        Args:
            model (`nn.Module`): The model that the experts belong to.
            **fields: The other fields of [`MoTEConfig`].

        Raises:
            [`ConfigError`]: if a field is malformed.
            [`UnknownNameError`]: if there is no such field, with the one that may be meant.
            [`ModelMismatchError`]: if the model has no such layer or expert, or too few would be left.
        """
        for given in fields:
            one_of(f"{cls.__name__}.for_model", given, [known.name for known in dataclasses.fields(cls)])
        routed = RoutedModel(model)
        name = public_name(getattr(getattr(model, "config", None), "name_or_path", None))
        fields = {"fingerprint": routed.fingerprint, "base_model": name, **fields}
        config = cls(**fields)
        check_against_model(config, routed)
        return config

    def check(self, model: nn.Module) -> None:
        """Raise unless the config fits a model; the model is not touched.

        Args:
            model (`nn.Module`): The model to check against.

        Raises:
            [`ModelMismatchError`]: if the config was made for another model, or the model has no such layer or
                expert, or a layer would be left with fewer experts than each token needs.
            [`UnsupportedError`]: if the model has no routed experts that the table knows.
        """
        check_against_model(self, RoutedModel(model))

    def for_other_weights(self, model: nn.Module) -> Self:
        """Return the config for a model of the same shape with other weights, as a fine-tune of its base.

        This is what `allow_other_weights=True` does. What is measured with it, saved or printed states this:
        `provenance` has an entry `"allow_other_weights"`.

        Args:
            model (`nn.Module`): The model to use it on.

        Returns:
            [`MoTEConfig`]: itself, if the model is the one it was made for.

        Raises:
            [`ModelMismatchError`]: if type, layers, experts or top-k are others.
        """
        return self.for_other_weights_of(RoutedModel(model))

    def for_other_weights_of(self, routed: RoutedModel) -> Self:
        """As [`for_other_weights`], for a model whose routers were found.

        Args:
            routed (`RoutedModel`): The model with its routers.
        """
        live, made = routed.fingerprint, self.fingerprint
        if made is not None:
            shape = {**made, "router_sha256": None, SAMPLED: None}
            check_fingerprint(shape, live, routed.sites, where="MoTEConfig.fingerprint")
        if (made is None or same_weights(made, live)) and self.unverified is None:
            return self
        elsewhere, compared = differing(None if made is None else made.get(SAMPLED), live.get(SAMPLED))
        found = {
            "made_for": None if made is None else made["router_sha256"],
            "applied_to": live["router_sha256"],
            "model": public_name(getattr(getattr(routed.model, "config", None), "name_or_path", None)),
            **({"elsewhere": f"{len(elsewhere)} of {compared} sampled weights differ"} if elsewhere else {}),
            **({} if self.unverified is None else {"unverified": self.unverified}),
        }
        provenance = {**self.provenance, _OTHER_WEIGHTS: found}
        return dataclasses.replace(self, fingerprint=live, unverified=None, provenance=provenance)

    @property
    def on_other_weights(self) -> str | None:
        """A note that the config is used on weights it was not made for; `None` for other configs."""
        found = self.provenance.get(_OTHER_WEIGHTS)
        if not isinstance(found, Mapping):
            return None
        if found.get("unverified"):
            return "applied unverified, by allow_other_weights"
        return "on other weights than it was made for, by allow_other_weights"

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each target: layer, expert, action, value (of a bias or gain)."""
        rows = [(*pair, name, None) for name in ("suppress", "stimulate") for pair in getattr(self, name)]
        rows += [(*pair, name, value) for name in ("bias", "gain") for *pair, value in getattr(self, name)]
        names = ("layer", "expert", "action", "value")
        return frame_of({name: [row[at] for row in rows] for at, name in enumerate(names)})

    def _summary(self) -> Summary:
        facts = {
            name: f"{experts_in_words(getattr(self, name))} ({how})"
            for name, how in (
                ("suppress", self.suppress_mode),
                ("stimulate", f"weight {self.stimulate_weight}"),
                ("bias", f"on {self.bias_on}"),
                ("gain", "times the weight"),
            )
            if getattr(self, name)
        }
        facts["when"] = self.scope if self.thinking_tokens is None else f"{self.scope}, between {self.thinking_tokens}"
        if self.positions is not None:
            facts["when"] += f", at the positions {', '.join(map(str, self.positions))}"
        if self.strength != 1.0:
            facts["strength"] = f"{self.strength:g}"
        if self.base_model is not None:
            facts["model"] = self.base_model
        if self.fingerprint is None:
            facts["checked by"] = "layers and experts alone: it has no fingerprint"
        if self.unverified is not None:
            facts["not verified"] = self.unverified
        if self.on_other_weights is not None:
            facts["used"] = self.on_other_weights
        number = len(self.targets)
        return Summary(f"MoTEConfig: {number} expert{'s' * (number != 1)}", facts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the versions that write them, JSON-native."""
        values = {f.name: json_copy(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}
        for name, unused in _WHERE_USED.items():
            if values[name] == unused:
                del values[name]
        return {
            "schema_version": SCHEMA_VERSION,
            "hf_mote_version": __version__,
            "transformers_version": transformers.__version__,
            **values,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the config that `to_dict` described.

        Args:
            data (`Mapping[str, Any]`): The fields, and `schema_version`. What is left out takes its default, if no
                version of this package is named as the one that wrote it.

        Raises:
            [`ConfigError`]: if a field is unknown or malformed, the schema version is missing or newer, or a field is
                missing of what a version of this package wrote.
        """
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise ConfigError("MoTEConfig", "not a dict with text keys", got=repr(data)[:80])
        values = dict(data)
        version = values.pop("schema_version", None)
        written_by = values.pop("hf_mote_version", None)
        for name, stamp in (
            ("hf_mote_version", written_by),
            ("transformers_version", values.pop("transformers_version", None)),
        ):
            if stamp is not None and not isinstance(stamp, str):
                raise ConfigError(f"MoTEConfig.{name}", "is not text", got=repr(stamp), expected="a version")
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise ConfigError(
                "MoTEConfig.schema_version",
                "this version cannot be read",
                got=repr(version),
                expected=f"1..{SCHEMA_VERSION}",
                fix=f"It was written by hf_mote {written_by}; upgrade hf_mote.",
            )
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"MoTEConfig.{unknown[0]}", "unknown field", got=", ".join(unknown), expected=", ".join(known)
            )
        written = (*STAMPS, *(name for name in known if name not in _WHERE_USED))
        if lost := lacking(data, written):
            fix = f"Write it again. In a config written by hand, leave out {' and '.join(STAMPS)}."
            raise ConfigError(f"MoTEConfig.{lost[0]}", "is missing", got=f"no {', '.join(lost)}", fix=fix)
        return cls(**values)

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise FileFormatError(
                str(path), "does not hold a valid MoTE config", got=str(error).rstrip(".")
            ) from error

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        ranking: Shareable | None = None,
        report: Shareable | None = None,
        maps: Mapping[str, Shareable] | None = None,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> None:
        """Write the config and its card, and the ranking, report and maps beside them.

        Args:
            folder (`str` or `os.PathLike`): Made if it does not exist. A card that was not made here is kept.
            ranking ([`ExpertRanking`], *optional*): The ranking it was made from; its heat map stands on the card.
            report ([`EvaluationReport`], *optional*): What it does, measured: effect, controls, side effects.
            maps (`Mapping[str, ActivationMap]`, *optional*): Maps by class, each in the folder `maps/<class>`.
            datasets (`Sequence[str]`, *optional*): For the card: Hub ids of the data sets it was made with.
            license (`str`, *optional*): For the card: its license, as the Hub names it.
            intended_use (`str`, *optional*): For the card: what it is for.
            misuse (`str`, *optional*): For the card: what it is not for.

        Raises:
            [`FileFormatError`]: if `folder` cannot be a folder, or the config holds what a file cannot.
            [`ConfigError`]: if what is to lie beside it is of another kind.
        """
        beside = beside_config(ranking, report, maps)
        evidence = evidence_of([(place, one._evidence()) for place, one in beside])
        self._write(Path(folder), CardNotes(datasets, license, intended_use, misuse), beside, evidence)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        ranking: Shareable | None = None,
        report: Shareable | None = None,
        maps: Mapping[str, Shareable] | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
        with_texts: bool = False,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> str:
        """Upload the config with its ranking, report, maps, card and pictures, and return the commit's URL.

        Prompts and responses of a report are not uploaded unless `with_texts` is given. The other classes load theirs
        from the same repository: `ExpertRanking.from_pretrained(repo_id)`,
        `EvaluationReport.from_pretrained(repo_id)`,
        `ActivationMap.from_pretrained(repo_id, subfolder="maps/<class>")`.

        Args:
            repo_id (`str`): `namespace/name`; made if it does not exist.
            ranking ([`ExpertRanking`], *optional*): As in `save_pretrained`; so are the next two.
            report ([`EvaluationReport`], *optional*): See there.
            maps (`Mapping[str, ActivationMap]`, *optional*): See there.
            private (`bool`, *optional*): Whether a repository that is made here is private.
            token (`str` or `bool`, *optional*): As in `huggingface_hub.HfApi`.
            commit_message (`str`, *optional*): By default "Upload MoTEConfig".
            revision (`str`, *optional*): Branch to commit to, made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request, and return its URL.
            subfolder (`str`, *optional*): Folder in the repository.
            with_texts (`bool`, *optional*, defaults to `False`): Upload the report's prompts and responses, too.
            datasets (`Sequence[str]`, *optional*): For the card, as in `save_pretrained`; so are the others.
            license (`str`, *optional*): See there.
            intended_use (`str`, *optional*): See there.
            misuse (`str`, *optional*): See there.

        Raises:
            [`UnknownNameError`]: if there is no such repository, or the token is refused.
            [`UnsupportedError`]: if the Hub refuses, with its reason, or something private would be uploaded.
            [`ConfigError`]: if what is to lie beside it is of another kind.
        """
        return self._push(
            repo_id,
            CardNotes(datasets, license, intended_use, misuse),
            beside_config(ranking, report, maps),
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            subfolder=subfolder,
            with_texts=with_texts,
        )

    def _public(self, *, with_texts: bool) -> Self:
        name = public_name(self.base_model)
        return dataclasses.replace(self, base_model=name, provenance=without_places(self.provenance))

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        return config_card(
            self.to_dict(), notes, evidence, unverified=self.unverified, other_weights=self.on_other_weights
        )
