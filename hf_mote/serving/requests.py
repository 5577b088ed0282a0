"""The profile of a request: named in its arguments, and looked up in the front-end before a worker gets it.

A request names a profile by `SamplingParams(extra_args={"mote": NAME})`, or `vllm_xargs` over HTTP, and may ask to be
recorded by `"mote_record": KEY`. The front has all names, so that an unknown one is an error of that request. It
passes on the digest of the profile, so that a name that is loaded again does not change running requests, and sets the
salt of the prefix cache, so that no request reads keys and values of another profile.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from hf_mote.errors import DataError, UnknownNameError, UnsupportedError
from hf_mote.mote.config import MoTEConfig
from hf_mote.serving.settings import KEY, Profile, ServingSettings

__all__ = ["DIGEST", "NAME", "RECORD", "SLOT", "Front", "salted"]

NAME, RECORD = "mote", "mote_record"
DIGEST, SLOT = "mote_digest", "mote_slot"
_SALT = "hf_mote"


class Front:
    """The state of the process that accepts requests.

    Args:
        settings (`ServingSettings`, *optional*): The engine's; `None` for one that serves no profiles.
    """

    def __init__(self, settings: ServingSettings | None) -> None:
        self.settings = settings
        self.profiles: dict[str, Profile] = dict(settings.profiles) if settings is not None else {}
        self.slots: dict[str, int] = {}
        self.stale: set[str] = set()
        """Digests without a name; the workers drop them when no running request uses them."""

    def admit(self, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return a request's arguments with those for the workers, or `None` if it uses no profile or recording.

        Args:
            extra (`Mapping[str, Any]`, *optional*): Its `extra_args`.

        Raises:
            [`HFMoTEError`]: if the request cannot be served; others are not affected.
        """
        extra = extra or {}
        for name in (DIGEST, SLOT):
            if name in extra:
                raise DataError(
                    f"extra_args[{name!r}]", "is reserved for the engine", fix=f"Name a profile by {NAME!r}."
                )
        if extra.get(NAME) is None and extra.get(RECORD) is None:
            return None
        if self.settings is None:
            fix = f"Start the engine with additional_config={{{KEY!r}: {{'profiles': {{NAME: CONFIG}}}}}}."
            raise UnsupportedError(f"extra_args[{NAME!r}]", "this engine serves no profiles", fix=fix)
        found: dict[str, Any] = dict(extra)
        profile, key = found.get(NAME), found.get(RECORD)
        if profile is not None:
            if not isinstance(profile, str) or profile not in self.profiles:
                raise UnknownNameError.of(f"extra_args[{NAME!r}]", profile, self.profiles)
            found[DIGEST] = self.profiles[profile].digest
        if key is not None:
            found[SLOT] = self._slot(key)
        return found

    def check_load(self, name: str, config: MoTEConfig) -> Profile:
        """Return a profile for the workers.

        Args:
            name (`str`): Its name in requests.
            config (`MoTEConfig`): What it does.

        Raises:
            [`UnsupportedError`]: if this engine serves no profiles, or not such ones.
        """
        if self.settings is None:
            fix = f"Start the engine with additional_config={{{KEY!r}: {{}}}}."
            raise UnsupportedError("engine", "serves no profiles", fix=fix)
        return Profile(name, config)

    def loaded(self, profile: Profile) -> None:
        """Called when the workers have a profile; its name refers to it from now on."""
        before = self.profiles.get(profile.name)
        self.profiles[profile.name] = profile
        self._may_go(before)
        self.stale.discard(profile.digest)

    def forget(self, name: str) -> None:
        """Remove a name.

        Args:
            name (`str`): A profile's.

        Raises:
            [`UnknownNameError`]: if no profile has that name.
        """
        if name not in self.profiles:
            raise UnknownNameError.of("profile", name, self.profiles)
        self._may_go(self.profiles.pop(name))

    def slot_of(self, key: str) -> int:
        """Return the slot of a recording.

        Args:
            key (`str`): Its name in requests.

        Raises:
            [`UnknownNameError`]: if no request did, or it was taken already.
        """
        if key not in self.slots:
            raise UnknownNameError.of("recording", key, self.slots)
        return self.slots[key]

    def _may_go(self, profile: Profile | None) -> None:
        if profile is not None and profile.digest not in {one.digest for one in self.profiles.values()}:
            self.stale.add(profile.digest)

    def _slot(self, key: Any) -> int:
        where = f"extra_args[{RECORD!r}]"
        most = self.settings.record if self.settings is not None else 0
        if not most:
            fix = f"Start the engine with additional_config={{{KEY!r}: {{'record': 64}}}}."
            raise UnsupportedError(where, "this engine records nothing", fix=fix)
        if not isinstance(key, str) or not 0 < len(key) <= 200:
            raise DataError(
                where, "must be the name of a recording", got=repr(key)[:80], expected="text, at most 200 long"
            )
        if key not in self.slots:
            free = set(range(most)) - set(self.slots.values())
            if not free:
                fix = "Take some first, or start the engine with a larger 'record'."
                raise UnsupportedError(where, "the maximum of recordings is open", got=most, fix=fix)
            self.slots[key] = min(free)
        return self.slots[key]


def salted(salt: str | None, extra: Mapping[str, Any]) -> str | None:
    """Return the salt of a request's prefix cache.

    Args:
        salt (`str`, *optional*): The one that the user gave.
        extra (`Mapping[str, Any]`): The request's arguments as `admit` returned them.
    """
    if SLOT in extra:
        return f"{_SALT}:{uuid.uuid4().hex}"  # tokens that are read from the cache are not run, and not recorded
    if DIGEST not in extra:
        return salt
    return f"{_SALT}:{extra[DIGEST]}" + ("" if salt is None else f":{salt}")


def check_admitted(extra: Mapping[str, Any] | None, salt: str | None, known: set[str]) -> None:
    """Raise unless a request that reaches the engine's core was admitted by a front.

    Args:
        extra (`Mapping[str, Any]`, *optional*): Its `extra_args`.
        salt (`str`, *optional*): Its salt.
        known (`set[str]`): Digests of the profiles that the workers have.
    """
    extra = extra or {}
    if not any(extra.get(name) is not None for name in (NAME, RECORD, DIGEST, SLOT)):
        return
    digest = extra.get(DIGEST)
    if (NAME in extra and digest is None) or (digest is not None and digest not in known):
        raise UnknownNameError.of(f"extra_args[{NAME!r}]", extra.get(NAME), known)
    if salt is None or not salt.startswith(f"{_SALT}:"):
        raise UnsupportedError("request", "was not admitted by the engine's front, which salts its prefix cache")
