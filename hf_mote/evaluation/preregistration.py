"""A pre-registration: the measurement, its judge and its margin, hashed before and checked after.

If prompts, judge or config may be changed after a look at the result, a result can always be found. A file that was
written before holds the hashes of all of these; the measurement is made only if they still agree, and its report
carries the file's own hash. The texts themselves need not be in it, so that it can be published without them.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mote.errors import DataError, FileFormatError
from hf_mote.files import read_json, replacing
from hf_mote.version import __version__

__all__ = ["Preregistration", "judge_identity", "preregister"]

_KIND = "hf_mote preregistration"
_PARTS = ("model", "config", "prompts", "unrelated", "judge", "target", "settings")


@dataclass(frozen=True)
class Preregistration:
    """The plan that was written down before.

    Attributes:
        hashes (`dict[str, str]`): SHA-256 of each part: model, config, prompts, unrelated prompts, judge, target,
            settings (controls, seed, margin, lengths).
        settings (`dict`): The settings themselves, to be read.
        num_prompts (`int`): How many prompts.
        written (`str`): The time in UTC, by the clock of the machine.
        version (`str`): Of this package.
    """

    hashes: dict[str, str]
    settings: dict[str, Any]
    num_prompts: int
    written: str
    version: str

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what to publish beforehand."""
        return _hash(dataclasses.asdict(self))

    def check(self, other: Preregistration) -> None:
        """Raise [`DataError`] unless the present plan is the one that was written down.

        Args:
            other ([`Preregistration`]): The present plan.
        """
        wrong = [part for part in _PARTS if self.hashes.get(part) != other.hashes.get(part)]
        if wrong:
            changed = {
                name: (self.settings.get(name), value)
                for name, value in other.settings.items()
                if self.settings.get(name) != value
            }
            raise DataError(
                "preregistration",
                "the measurement differs from the plan that was written down",
                got=f"other {', '.join(wrong)}" + (f": {changed}" if changed else ""),
                expected=f"as of {self.written}",
                fix="Measure what was planned, or register again and state it.",
            )

    def write(self, path: Path) -> None:
        """Write it to a new file.

        Args:
            path (`Path`): The file; it must not exist.
        """
        if path.exists():
            raise FileFormatError(
                str(path), "exists", expected="a new file", fix="A pre-registration is not replaced."
            )
        text = json.dumps({"kind": _KIND, **dataclasses.asdict(self), "digest": self.digest}, indent=2, sort_keys=True)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Preregistration:
        """Read it, and check that the file is unchanged.

        Args:
            path (`Path`): The file.

        Raises:
            [`FileFormatError`]: if it is not one, or was edited.
        """
        data = read_json(path)
        names = {field.name for field in dataclasses.fields(cls)}
        if data.get("kind") != _KIND or set(data) != {*names, "kind", "digest"}:
            raise FileFormatError(str(path), "must be a pre-registration", got=f"kind {data.get('kind')!r}")
        hashes, settings = data["hashes"], data["settings"]
        texts = isinstance(hashes, dict) and all(isinstance(value, str) for value in hashes.values())
        if not texts or not isinstance(settings, dict) or not isinstance(data["num_prompts"], int):
            raise FileFormatError(str(path), "must be a pre-registration", got="fields of other types")
        found = cls(**{name: data[name] for name in names})
        if found.digest != data["digest"]:
            raise FileFormatError(
                str(path), "was changed after it was written", got=found.digest[:12], expected=str(data["digest"])[:12]
            )
        return found


def preregister(
    *,
    model: Mapping[str, Any],
    config: Mapping[str, Any],
    prompts: Sequence[Any],
    judge: object,
    target: str,
    unrelated: Sequence[Any] = (),
    **settings: Any,
) -> Preregistration:
    """Return what will be measured, hashed.

    Args:
        model (`Mapping`): What identifies the model, as the fingerprint of `MoTEConfig.for_model`.
        config (`Mapping`): The config, as `MoTEConfig.to_dict` has it.
        prompts (`Sequence[str]` or chats): The prompts, in order.
        judge (`Callable`): The judge; see [`judge_identity`].
        target (`str`): The label whose rate is reported.
        unrelated (`Sequence[str]` or chats, *optional*): The unrelated prompts.
        **settings: Controls, seed, margin, lengths, and other fixed values; JSON-native.

    Example:
        ```python
        from hf_mote import RefusalJudge
        from hf_mote.evaluation.preregistration import preregister

        plan = {"model": {}, "config": {"suppress": [[2, 5]]}, "target": "refusal", "judge": RefusalJudge()}
        before = preregister(**plan, prompts=["a", "b"], num_controls=40, margin=0.1)
        before.check(preregister(**plan, prompts=["a", "b"], num_controls=40, margin=0.1))
        ```
    """
    parts = {
        "model": dict(model),
        # The provenance of a config is left out.
        "config": {name: value for name, value in config.items() if name != "provenance"},
        "prompts": list(prompts),
        "unrelated": list(unrelated),
        "judge": judge_identity(judge),
        "target": str(target),
        "settings": settings,
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Preregistration(
        {name: _hash(part) for name, part in parts.items()}, settings, len(prompts), now, __version__
    )


def judge_identity(judge: object) -> dict[str, Any]:
    """Return what identifies a judge: its class and source, and its arguments.

    Of a function the source, its defaults and the values that it closes over; of a method the object's, too; of a
    `functools.partial` what it holds; of an object its class's source, and its attributes if they can be
    written (models by the name they were loaded from). Global values that a function reads are not seen.

    Args:
        judge (`Callable`): The judge.
    """
    if isinstance(judge, functools.partial):
        held = {"args": _plain(judge.args), "keywords": _plain(judge.keywords)}
        return {"name": "functools.partial", "of": judge_identity(judge.func), "given": held}
    if inspect.ismethod(judge):
        return {"name": "method", "of": judge_identity(judge.__func__), "given": judge_identity(judge.__self__)}
    kind = judge if inspect.isroutine(judge) else type(judge)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt, or built in
        source = repr(getattr(kind, "__code__", kind))
        code = getattr(kind, "__code__", None)
        source = code.co_code.hex() + repr(code.co_consts) if code is not None else source
    given: dict[str, Any] = {}
    closed: dict[str, Any] = {}
    if inspect.isfunction(judge):
        given = {"defaults": _plain(judge.__defaults__), "keyword_defaults": _plain(judge.__kwdefaults__)}
        closed = {name: _plain(value) for name, value in inspect.getclosurevars(judge).nonlocals.items()}
    elif not inspect.isroutine(judge):
        given = {name: _plain(value) for name, value in _vars_of(judge).items()}
    return {"name": f"{kind.__module__}.{kind.__qualname__}", "source": source, "given": given, "closed": closed}


def _vars_of(judge: object) -> dict[str, Any]:
    """Return an object's attributes, also those of a class with slots."""
    slots = [name for kind in type(judge).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(judge, name) for name in slots if hasattr(judge, name)}
    return {**found, **getattr(judge, "__dict__", {})}


def _plain(value: object) -> object:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(one), sort_keys=True) for one in value)
    named = getattr(value, "name_or_path", None) or getattr(value, "pattern", None)
    return {"type": type(value).__qualname__, "name": str(named) if named is not None else None}


def _hash(part: object) -> str:
    text = json.dumps(part, sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()
