"""`SteeringConfig`: which latents of which SAE are changed, where, how much and when; the file that is shared.

`BoundSteering` is a config with its loaded SAE, which can be attached to a model and measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from hf_mote.errors import ConfigError, FileFormatError, ModelMismatchError, is_finite
from hf_mote.files import read_json, write_json
from hf_mote.hooks import Intervention
from hf_mote.hub import Shareable, public_name
from hf_mote.sae.convert import load_sae
from hf_mote.sae.edits import SCOPES, Edits, Scope, as_json, read_edits
from hf_mote.sae.hookpoints import canonical
from hf_mote.sae.intervene import sites_of, steer_latents, unwrapped
from hf_mote.sae.latent_use import LatentUse
from hf_mote.sae.modeling import SAEModel
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card
from hf_mote.sharing.privacy import is_hub_id, without_places
from hf_mote.version import __version__, lacking

if TYPE_CHECKING:
    from typing import Self

__all__ = ["BoundSteering", "SteeringConfig", "digest_of"]

SCHEMA_VERSION = 1
_STAMP = "hf_mote_version"
# State of training, without effect at inference.
_NOT_HASHED = ("tokens_since_fired", "threshold_steps", "threshold_k", "density", "density_tokens", "latent_rank")


def digest_of(sae: SAEModel) -> str:
    """Return a digest of an SAE at inference: its architecture and tensors, as float32."""
    digest = hashlib.sha256(sae.config.model_type.encode())
    settings = {name: getattr(sae.config, name, None) for name in ("k", "subtract_decoder_bias", "skip_connection")}
    settings["scaled"] = getattr(sae.config, "scale_latents_by_decoder_norm", False)
    if sae.config.input_normalization is not None:
        settings["normalized"] = [sae.config.input_normalization, sae.config.input_normalization_eps]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        if name not in _NOT_HASHED:
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SteeringConfig(Shareable):
    """A behaviour as latents of an SAE: saved, checked and shared as a [`MoTEConfig`] is.

    Args:
        edits (`dict[int, Any]` or list of `[latent, operation, value]`):
            From a latent to a number (added), `("multiply", x)`, `("clamp", x)` or `"ablate"`; kept as a sorted list.
        hookpoint (`str`): Where the SAE belongs, such as `"model.layers.15.output"`.
        sae (`str`, *optional*): Folder or Hub id of the SAE, which [`steer`] loads.
        sae_digest (`str`, *optional*): What [`digest_of`] says of it; another SAE is refused.
        scope (`str`, *optional*, defaults to `"all"`):
            On which tokens: `"all"`, `"prompt"`, `"generation"`, `"thinking"` or `"answer"`.
        thinking_tokens (`[int, int]`, *optional*): The tokens that open and close the thinking, for the last two.
        strength (`float`, *optional*, defaults to 1.0): Factor on every change.
        keep_error (`bool`, *optional*, defaults to `True`): Whether what the SAE does not reconstruct is kept.
        base_model (`str`, *optional*): Hub id of the model that it is for.
        provenance (`dict`, *optional*): How it was made, in JSON-native values.

    Raises:
        [`ConfigError`]: with the field's name, if a value cannot be.

    Example:

    ```python
    from hf_mote import SteeringConfig

    config = SteeringConfig({7: 4.0, 3: "ablate"}, hookpoint="model.layers.15.output", scope="generation")
    config.save_pretrained("kinder")
    assert SteeringConfig.from_pretrained("kinder") == config
    ```
    """

    file_name: ClassVar[str] = "steering_config.json"

    edits: Any
    hookpoint: str
    sae: str | None = None
    sae_digest: str | None = None
    scope: str = "all"
    thinking_tokens: Sequence[int] | None = None
    strength: float = 1.0
    keep_error: bool = True
    base_model: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def fail(name: str, what: str, expected: str) -> ConfigError:
            return ConfigError(f"SteeringConfig.{name}", what, got=repr(getattr(self, name))[:60], expected=expected)

        read = read_edits("SteeringConfig.edits", self.edits)
        object.__setattr__(self, "edits", as_json(read))
        for name in ("hookpoint", "sae", "sae_digest", "base_model"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name != "hookpoint"):
                raise fail(name, "is not text", "str")
        if not self.hookpoint:
            raise fail("hookpoint", "is empty", "a module's path")
        if self.scope not in SCOPES:
            raise fail("scope", "unknown name", ", ".join(map(repr, SCOPES)))
        if (self.scope in ("thinking", "answer")) != (self.thinking_tokens is not None):
            raise fail("thinking_tokens", f"and scope {self.scope!r} do not fit", "both for 'thinking' and 'answer'")
        if self.thinking_tokens is not None:
            tokens = list(self.thinking_tokens)
            if len(tokens) != 2 or tokens[0] == tokens[1] or not all(type(t) is int and t >= 0 for t in tokens):
                raise fail("thinking_tokens", "not two token ids", "[opens, closes]")
            object.__setattr__(self, "thinking_tokens", tokens)
        strength = self.strength
        if not is_finite(strength):
            raise fail("strength", "must be a finite number", "a number")
        object.__setattr__(self, "strength", float(strength))
        if not isinstance(self.keep_error, bool):
            raise fail("keep_error", "is not true or false", "bool")
        if not isinstance(self.provenance, Mapping):
            raise fail("provenance", "is not a dict", "dict")
        try:
            copied = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise fail("provenance", "holds what JSON cannot", "JSON-native values") from error
        object.__setattr__(self, "provenance", copied)

    @classmethod
    def for_sae(cls, sae: SAEModel, edits: Edits, *, path: str | None = None, **fields: Any) -> Self:
        """Return a config for a loaded SAE, with its digest, hookpoint and base model.

        Args:
            sae ([`SAEModel`]): The SAE.
            edits (`dict[int, Any]`): What is done to its latents.
            path (`str`, *optional*): Folder or Hub id where it can be loaded; by default where it was loaded from.
            fields (`Any`): Other fields.

        Raises:
            [`ConfigError`]: if a field is malformed, or the SAE has no such latent.
        """
        read = read_edits("SteeringConfig.edits", edits, sae.config.num_latents)
        known: dict[str, Any] = {
            "hookpoint": sae.config.hookpoint or "",
            "sae": path or sae.config.name_or_path or None,
            "sae_digest": digest_of(sae),
            "base_model": public_name(sae.config.base_model),
        }
        return cls(edits=as_json(read), **{**known, **fields})

    def load_sae(self) -> SAEModel:
        """Return the SAE of the config, in evaluation mode.

        Raises:
            [`ConfigError`]: if it names none.
        """
        if self.sae is None:
            fix = "Give the SAE: steer(model, sae, config)."
            raise ConfigError("SteeringConfig.sae", "the config does not say where its SAE is", fix=fix)
        sae: SAEModel = load_sae(self.sae).train(False)
        return sae

    def check_sae(self, sae: SAEModel) -> None:
        """Raise unless it is for this SAE.

        Raises:
            [`ModelMismatchError`]: if the SAE is another one.
        """
        if self.sae_digest is not None and (found := digest_of(sae)) != self.sae_digest:
            raise ModelMismatchError(
                "SteeringConfig.sae_digest",
                "the config is for another SAE",
                got=f"{found[:12]}…",
                expected=f"{self.sae_digest[:12]}…",
                fix="Load the SAE that it names, in the dtype it was saved in: latents have other meanings in others.",
            )
        hookpoint = sae.config.hookpoint
        if hookpoint is not None and canonical(hookpoint) != canonical(self.hookpoint):
            raise ModelMismatchError(
                "SteeringConfig.hookpoint", "is not the SAE's", got=repr(self.hookpoint), expected=repr(hookpoint)
            )

    def bind(self, sae: SAEModel | None = None) -> BoundSteering:
        """Return it together with its SAE, as [`evaluate_mote`] measures it.

        Args:
            sae ([`SAEModel`], *optional*): The SAE, in evaluation mode; by default the one that it names, loaded.

        Raises:
            [`ModelMismatchError`]: if it is for another SAE.
            [`ConfigError`]: if there is no SAE.
        """
        return BoundSteering(self, sae)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-native values, with the version that writes them."""
        return {"schema_version": SCHEMA_VERSION, _STAMP: __version__, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the config of what [`to_dict`] returned.

        What is left out takes its default, if no version of this package is named as the one that wrote it.

        Raises:
            [`ConfigError`]: if a field is unknown or malformed, the version is newer, or a field is missing of what a
                version of this package wrote.
        """
        values = dict(data)
        version, written_by = values.pop("schema_version", None), values.pop(_STAMP, None)
        if written_by is not None and not isinstance(written_by, str):
            raise ConfigError(f"SteeringConfig.{_STAMP}", "must be text", got=repr(written_by)[:60], expected="str")
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            fix = f"It was written by hf_mote {written_by}; upgrade hf_mote."
            expected = f"1..{SCHEMA_VERSION}"
            what = "this version cannot be read"
            raise ConfigError("SteeringConfig.schema_version", what, got=repr(version), expected=expected, fix=fix)
        known = [f.name for f in dataclasses.fields(cls)]
        for name in sorted(values.keys() - set(known)):
            raise ConfigError(f"SteeringConfig.{name}", "unknown field", expected=", ".join(known))
        needed = ("edits", "hookpoint")
        if lost := lacking(data, known) or [name for name in needed if name not in values]:
            fix = f"Write it again. In a config written by hand, leave out {_STAMP}."
            got = f"no {', '.join(lost)}"
            raise ConfigError(
                f"SteeringConfig.{lost[0]}", "is missing", got=got, fix=None if lost[0] in needed else fix
            )
        return cls(**values)

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise FileFormatError(str(path), "holds no valid steering config", got=str(error).rstrip(".")) from error

    def _public(self, *, with_texts: bool) -> Self:
        # A folder's name alone could match another folder: the SAE must then be given when the config is loaded.
        sae = self.sae if self.sae is not None and is_hub_id(self.sae) else None
        name, made = public_name(self.base_model), without_places(self.provenance)
        return dataclasses.replace(self, sae=sae, base_model=name, provenance=made)

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        rows = "\n".join(f"| {latent} | {operation} | {value:g} |" for latent, operation, value in self.edits[:50])
        made = "\n".join(f"- {key}: {value}" for key, value in sorted(self.provenance.items())) or "- not stated"
        return compose_card(
            card_header(
                tags=["steering"],
                base_model=self.base_model,
                about="sparse-autoencoder",
                notes=notes,
                evidence=evidence,
            ),
            "Steering config",
            f"For `{self.base_model or 'a model that is not named'}`, at `{self.hookpoint}`, with the latents of "
            f"`{self.sae or 'an SAE that is not named'}`. Scope: {self.scope}. Strength: {self.strength:g}.\n\n"
            f"| latent | what | value |\n| --: | --- | --: |\n{rows}\n\n"
            "The SAE is checked by its digest when the config is applied.",
            load='from hf_mote import steer\n\nhandle = steer(model, "<this repository or folder>")'
            if self.sae is not None
            else "from hf_mote import SteeringConfig, steer\n\n"
            'config = SteeringConfig.from_pretrained("<this repository or folder>")\n'
            "handle = steer(model, sae, config)  # the SAE that the config was made with; its digest is checked",
            notes=notes,
            evidence=evidence,
            sections={"How it was made": made},
            intended_use="Studying what the named latents do in the model it was made for; no other use is stated.",
            misuse="It may change more than it is meant to; what was not measured is not known.",
        )


class BoundSteering:
    """A steering config and its SAE: it can be attached, and applied to other latents.

    Args:
        config ([`SteeringConfig`]): The config.
        sae ([`SAEModel`], *optional*): Its SAE, in evaluation mode; by default the one that it names, loaded.

    Raises:
        [`ModelMismatchError`]: if the config is for another SAE.
        [`ConfigError`]: if there is no SAE, or it has no such latent.
    """

    unit = "latent"

    def __init__(self, config: SteeringConfig, sae: SAEModel | None = None) -> None:
        self._own = sae is None  # loaded here, so that it may be moved to the model
        self.sae = config.load_sae() if sae is None else sae
        config.check_sae(self.sae)
        for latent, _, _ in config.edits:
            if latent >= (count := self.sae.config.num_latents):
                where = f"SteeringConfig.edits[{latent}]"
                raise ConfigError(where, "the SAE has no such latent", got=latent, expected=f"0..{count - 1}")
        self.config = config

    @property
    def strength(self) -> float:
        """Factor on every change."""
        return self.config.strength

    @property
    def scope(self) -> str:
        """Tokens that are changed."""
        return self.config.scope

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing: no edits, or strength 0, and errors kept."""
        return self.config.keep_error and (not self.config.edits or not self.config.strength)

    @property
    def num_units(self) -> int:
        """Latents of the SAE."""
        return self.sae.config.num_latents

    def roles(self) -> dict[int, Hashable]:
        """Return the edit of each changed latent."""
        return {latent: (operation, value) for latent, operation, value in self.config.edits}

    def exchanged(self, others: Mapping[int, int]) -> BoundSteering:
        """Return the same change of other latents."""
        return self.with_fields(edits=[[others[latent], *what] for latent, *what in self.config.edits])

    def with_fields(self, **fields: Any) -> BoundSteering:
        """Return it with other fields of the config."""
        made = object.__new__(BoundSteering)
        made.config, made.sae, made._own = dataclasses.replace(self.config, **fields), self.sae, self._own
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return the config's fields."""
        return self.config.to_dict()

    def check(self, model: nn.Module) -> None:
        """Raise unless the model has the SAE's hookpoint.

        Raises:
            [`UnknownNameError`]: if it has no such module.
        """
        sites_of(unwrapped(model), self.sae, self.config.hookpoint, "SteeringConfig")

    def identity(self) -> dict[str, Any]:
        """Return its fields, and the digest of the SAE, also if the config has none."""
        return {**self.to_dict(), "sae_digest": digest_of(self.sae)}

    def attach(self, model: nn.Module) -> Intervention:
        """Attach it as `steer` does."""
        self._follow(model)
        config = self.config
        marks = config.thinking_tokens
        return steer_latents(
            model,
            self.sae,
            {latent: (operation, value) for latent, operation, value in config.edits},
            hookpoint=config.hookpoint,
            scope=cast(Scope, config.scope),
            thinking_tokens=None if marks is None else (marks[0], marks[1]),
            strength=config.strength,
            keep_error=config.keep_error,
        )

    def count_use(self, model: nn.Module, skipped: int | None = None) -> LatentUse:
        """Count on how many tokens each latent is active, until the handle is removed.

        Args:
            model (`nn.Module`): The model.
            skipped (`int`, *optional*): A token that is not counted, such as what fills up rows that ended.
        """
        self._follow(model)
        return LatentUse(model, self.sae, hookpoint=self.config.hookpoint, skipped=skipped)

    def _follow(self, model: nn.Module) -> None:
        weight = next(model.parameters(), None)
        if self._own and weight is not None:
            nn.Module.to(self.sae, weight.device)
