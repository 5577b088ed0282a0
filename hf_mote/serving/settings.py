"""The settings of an engine with profiles, `additional_config={"hf_mote": {...}}`: read, checked, made self-contained.

Profiles are inlined as JSON, so that every process has the same ones if the files change, and so that they
are part of the key of vLLM's compile cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_mote.errors import ConfigError, UnknownNameError, UnsupportedError
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import load_config

__all__ = ["KEY", "MODES", "Profile", "ServingSettings"]

KEY = "hf_mote"
"""Key of `additional_config` that switches the plugin on."""

MODES: dict[str, tuple[str, ...]] = {
    "drop": ("drop_share",),
    "zero": ("gain",),
    "reroute": ("banned",),
    "stimulate": ("forced", "forced_gain"),
    "stimulate_max": ("forced", "forced_to_max", "forced_gain"),
    "stimulate_number": ("forced", "forced_weight", "forced_gain"),
    "bias_on_logits": ("logit_bias",),
    "bias_on_selection": ("selection_bias",),
    "gain": ("gain",),
}
"""The modes of a profile, and the fields of a `RoutingEdit` that each uses."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WHERE = f"additional_config[{KEY!r}]"


@dataclass(frozen=True)
class Profile:
    """A config under a name.

    Attributes:
        name (`str`): What requests call it.
        config (`MoTEConfig`): What it does.
        digest (`str`): Of what it does, the same in every process; it is the salt of the prefix cache.
    """

    name: str
    config: MoTEConfig
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            expected = "letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
            raise ConfigError(
                f"{_WHERE}.profiles", "must be the name of a profile", got=repr(self.name), expected=expected
            )
        if self.config.scope not in ("all", "prompt", "generation"):
            raise UnsupportedError(
                f"profile {self.name!r}",
                "where thinking begins and ends is not known in the workers, as vLLM samples ahead of them",
                got=f"scope {self.config.scope!r}",
                expected="scope 'all', 'prompt' or 'generation'",
                fix="Apply it with apply_mote in transformers, or give it another scope.",
            )
        if self.config.positions is not None:
            raise UnsupportedError(
                f"profile {self.name!r}",
                "a profile acts on all tokens of its scope, and not at single positions",
                got=f"positions {self.config.positions}",
                expected="none",
                fix="Apply it with apply_mote in transformers, or leave the positions out.",
            )
        try:
            json.dumps(self.config.to_dict(), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            # A JSON escape can hold it, and neither a file nor a client takes it.
            what, got = "holds text that is not Unicode: half of a surrogate pair", ascii(error.object[error.start])
            raise ConfigError(f"profile {self.name!r}", what, got=got, expected="text that UTF-8 can hold") from error
        values = {**self.config.to_dict(), "hf_mote_version": None, "transformers_version": None}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "digest", digest)

    @property
    def modes(self) -> set[str]:
        """What it does, as names of `MODES`."""
        config = self.config
        if config.is_empty:
            return set()
        found: set[str] = {config.suppress_mode} if config.suppress else set()
        if config.stimulate:
            weight = config.stimulate_weight
            found.add({"own": "stimulate", "max": "stimulate_max"}.get(str(weight), "stimulate_number"))
        found |= {f"bias_on_{config.bias_on}"} if config.bias else set()
        return found | ({"gain"} if config.gain else set())


@dataclass(frozen=True)
class ServingSettings:
    """The settings of the plugin.

    Attributes:
        profiles (`dict[str, Profile]`): By name; may be empty, to load them later.
        max_profiles (`int`): How many different ones the workers hold, 1 to 1024.
        modes (`tuple[str, ...]`): What profiles that are loaded later may do where an engine is compiled or replays
            graphs, in addition to what the first ones do: names of `MODES`. An eager engine needs none.
        record (`int`): Recordings that may be open at a time; 0 for an engine that records nothing.
        allow_other_weights (`bool`): Whether profiles are served on weights that they were not made for, as a
            fine-tune's, or though they are unverified.
    """

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    max_profiles: int = 16
    modes: tuple[str, ...] = ()
    record: int = 0
    allow_other_weights: bool = False

    @classmethod
    def read(cls, given: Any) -> ServingSettings:
        """Return settings as a user gives them, or as `to_dict` has them.

        Args:
            given (`Any`): A mapping with any of `profiles`, `max_profiles`, `modes`, `record` and
                `allow_other_weights`; a profile is a folder, a file, a Hub id, a config, or a config's dict.

        Raises:
            [`ConfigError`]: if a setting is malformed.
            [`UnsupportedError`]: if a profile cannot be served.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(
                _WHERE, "must be a mapping", got=type(given).__name__, expected='{"profiles": {NAME: CONFIG}}'
            )
        known = ("profiles", "max_profiles", "modes", "record", "allow_other_weights")
        for name in given:
            if name not in known:
                raise UnknownNameError.of(_WHERE, name, known)
        profiles = given.get("profiles", {})
        if not isinstance(profiles, Mapping):
            raise ConfigError(
                f"{_WHERE}.profiles", "must be a mapping", got=type(profiles).__name__, expected="by name"
            )
        numbers = {}
        for name, default, least in (("max_profiles", 16, 1), ("record", 0, 0)):
            value = given.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1024:
                expected = f"{least} to 1024"
                raise ConfigError(f"{_WHERE}.{name}", "must be a whole number", got=repr(value), expected=expected)
            numbers[name] = value
        modes = given.get("modes", ())
        if not isinstance(modes, list | tuple) or not all(isinstance(mode, str) for mode in modes):
            raise ConfigError(f"{_WHERE}.modes", "must be names", got=repr(modes)[:80], expected="a list of texts")
        others = given.get("allow_other_weights", False)
        if not isinstance(others, bool):
            expected = "true or false"
            raise ConfigError(f"{_WHERE}.allow_other_weights", "is neither", got=repr(others), expected=expected)
        for mode in modes:
            if mode not in MODES:
                raise UnknownNameError.of(f"{_WHERE}.modes", mode, MODES)
        found = {name: Profile(name, config_from(entry)) for name, entry in profiles.items()}
        if len({profile.digest for profile in found.values()}) > numbers["max_profiles"]:
            fix = f"Raise max_profiles to {len(found)}."
            raise ConfigError(
                f"{_WHERE}.profiles", "too many", got=len(found), expected=numbers["max_profiles"], fix=fix
            )
        return cls(found, modes=tuple(modes), allow_other_weights=others, **numbers)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings with every profile inlined, JSON-native."""
        return {
            "profiles": {name: profile.config.to_dict() for name, profile in self.profiles.items()},
            "max_profiles": self.max_profiles,
            "modes": list(self.modes),
            "record": self.record,
            "allow_other_weights": self.allow_other_weights,
        }

    @property
    def fields(self) -> set[str]:
        """Fields of a `RoutingEdit` for which tables are made at the start."""
        modes = set(self.modes).union(*(profile.modes for profile in self.profiles.values()))
        fields = {name for mode in modes for name in MODES[mode]}
        if not any(profile.config.strength != 1 for profile in self.profiles.values()) and not self.modes:
            fields.discard("forced_gain")
        return fields


def config_from(entry: Any) -> MoTEConfig:
    """Return a config given as itself, as its dict, or as where it is saved."""
    if isinstance(entry, Mapping):
        return MoTEConfig.from_dict(entry)
    return load_config(os.fspath(entry) if isinstance(entry, os.PathLike) else entry)
