"""The fuzzer: damaged files to every reader, each within its limits, and what came of them.

    PYTHONPATH=tests:tests/robustness python tests/robustness/fuzz.py --inputs 200000 --jobs 2 --accepted accepted.txt

An input counts as found if the reader raises anything but an error of this package, takes more than 5 s of CPU time or
1 GB of memory beyond what the process has, writes outside its folder, starts a process, unpickles something, connects
somewhere or asks on the standard input. All that is accepted is listed by reader and kind of damage, with how often
and an example, to be read by a person. Whoever has less time runs the inputs in parts, with another `--seed` for each.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# Where `datasets` keeps what it has read, which is no harm: a place that the first process makes, and clears away.
if "FUZZ_CACHE" not in os.environ:
    os.environ["FUZZ_CACHE"] = os.path.realpath(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, os.environ["FUZZ_CACHE"], ignore_errors=True)
_CACHE = os.environ["HF_DATASETS_CACHE"] = os.environ["FUZZ_CACHE"]

from readers import READERS, Reader  # noqa: E402 (after what they read is set)

from hf_mote.errors import HFMoTEError  # noqa: E402

__all__ = ["CPU_SECONDS", "MEMORY_BYTES", "Case", "Outcome", "cases", "run_cases"]

CPU_SECONDS = 5
MEMORY_BYTES = 10**9

# What a file that is read must never bring about.
_FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "ctypes.dlopen",
)
_PARTS_OF_A_PROCESS = 4
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Case(NamedTuple):
    """One input: a reader by its name, and the seed of the damage."""

    reader: str
    seed: int


class Outcome(NamedTuple):
    """What came of it: "accepted", "refused" or what was found; what was done to the file; what was said."""

    case: Case
    kind: str
    done: str
    said: str


class _TooLong(BaseException):
    """Raised by the alarm, so that no `except Exception` swallows it."""


class _Watch:
    """Looks at what the interpreter reports of itself while a case runs."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "ctypes.dlopen" and arguments == (None,):
            return  # the process itself: how folders are exchanged
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {str(arguments)[:120]}")
        elif event == "pickle.find_class" and arguments[0] != "torch._utils":
            self.seen.append(f"{event} {arguments}")
        elif event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & _WRITES
            )
            places = (self.allowed, _CACHE)
            if writes and isinstance(path, str) and not os.path.realpath(path).startswith(places):
                self.seen.append(f"open {path} {mode or flags}")


_watch: _Watch | None = None


def cases(inputs: int, seed: int = 0) -> list[Case]:
    """Return so many cases, each reader's share of them."""
    total = sum(reader.share for reader in READERS)
    found = []
    for place, reader in enumerate(READERS):
        number = max(round(inputs * reader.share / total), 1)
        found += [Case(reader.name, (seed * len(READERS) + place) * 10**9 + index) for index in range(number)]
    return found


def run_cases(given: Sequence[Case], root: Path) -> Iterator[Outcome]:
    """Run cases one after the other below an empty folder, each in a folder of its own."""
    global _watch
    _watch = _watch or _Watch()
    readers = {reader.name: reader for reader in READERS}
    bases: dict[str, Path] = {}
    for case in given:
        reader = readers[case.reader]
        if case.reader not in bases:
            base = bases[case.reader] = root / "bases" / case.reader.replace("/", "-")
            base.mkdir(parents=True)
            reader.make(base)
            if reader.needs_no_seed:
                # Without limits: what is imported at first use does not count.
                reader.read(_copied(base, root / "case"))
            whole = _copied(base, root / "case")
            _run(_watch, reader, whole, case, "nothing", must_accept=reader.needs_no_seed)
        yield _one(_watch, reader, bases[case.reader], root / "case", case)


def _copied(base: Path, folder: Path) -> Path:
    """Return a folder with the files of another in it, in the place of what it held: a reader may write, too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in base.rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            # Links, since what is not damaged is not written to either.
            os.link(path, place)
    return folder


def _one(watch: _Watch, reader: Reader, base: Path, folder: Path, case: Case) -> Outcome:
    _copied(base, folder)
    random = Random(case.seed)
    done = []
    names = [name for name in reader.mutations if (folder / name).is_file()]
    for name in random.sample(names, random.choice((1, 1, 1, 2)) if len(names) > 1 else 1):
        content, what = reader.mutations[name]((folder / name).read_bytes(), random)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        done.append(f"{name}: {what}")
    if reader.extra is not None and random.random() < 0.1:
        target = folder / "config.json"
        if target.exists():
            copied = target.read_bytes()
            target.unlink()
            target.write_bytes(copied)
        done.append(reader.extra(folder, random))
    return _run(watch, reader, folder, case, "; ".join(done))


def _run(watch: _Watch, reader: Reader, folder: Path, case: Case, done: str, *, must_accept: bool = False) -> Outcome:
    watch.seen, watch.allowed = [], os.path.realpath(folder)
    said, kind = "", "accepted"
    try:
        with _limits(), _nobody_asked():
            reader.read(folder)
    except HFMoTEError as error:
        kind, said = "refused", f"{type(error).__name__}: {error}"
        try:
            said.encode()
        except UnicodeEncodeError:
            kind = "a message that cannot be written"
    except _TooLong:
        kind = f"over {CPU_SECONDS} s"
    except MemoryError as error:
        kind, said = "over 1 GB", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind = f"foreign {type(error).__name__}"
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "hf_mote" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        said = f"{str(error)[:200]} at {place}"
    finally:
        watch.allowed = None
    if watch.seen:
        kind, said = "did something", "; ".join(watch.seen[:3])
    if must_accept and kind != "accepted":
        raise AssertionError(f"{reader.name} refuses what is valid: {kind}: {said}")
    return Outcome(case, kind, done, said)


@contextmanager
def _limits() -> Iterator[None]:
    """Hold a case to its time and memory; what the process had before does not count."""

    def alarm(*_: Any) -> None:
        raise _TooLong

    usual = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGPROF, alarm)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY_BYTES, usual[1]))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, usual)
        signal.signal(signal.SIGPROF, before)


def _data_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))


@contextmanager
def _nobody_asked() -> Iterator[None]:
    def ask(*_: object) -> str:
        raise AssertionError("asked on the standard input")

    usual, builtins.input = builtins.input, ask
    try:
        yield
    finally:
        builtins.input = usual


def _work(given: list[Case]) -> list[Outcome]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as root:
        return list(run_cases(given, Path(root)))


def _kind_of(done: str) -> str:
    """Return what was done without the numbers and values that were drawn, so that many inputs are few kinds."""
    kinds = []
    for part in done.split("; "):
        place, given, value = part.partition(" = ")
        place = re.sub(r"\bseed [0-9a-f]+", "seed", re.sub(r"\b[0-9]+\b", "#", place))
        kinds.append(
            place + (" = a value near it" if value.endswith(", near") else " = another value" if given else "")
        )
    return "; ".join(dict.fromkeys(kinds))


@contextmanager
def _workers(jobs: int, parts: int) -> Iterator[Callable[..., Iterable[list[Outcome]]]]:
    """Yield what works parts off: this process where they are few, which then imports everything once only."""
    if jobs == 1 and parts <= _PARTS_OF_A_PROCESS:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=_PARTS_OF_A_PROCESS) as pool:
        yield pool.imap_unordered


def main() -> int:
    """Run from the command line; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--reader", action="append", help="only those whose name begins so")
    parser.add_argument("--accepted", type=Path, help="file for all that was accepted, by reader and kind")
    options = parser.parse_args()
    wanted = cases(options.inputs, options.seed)
    if options.reader:
        wanted = [case for case in wanted if case.reader.startswith(tuple(options.reader))]
    size = 500
    # By reader, so that a process makes few bases; and in parts, so that what leaks is bounded.
    parts = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    counts: Counter[tuple[str, str]] = Counter()
    shown: Counter[tuple[str, str, str]] = Counter()
    accepted: dict[tuple[str, str], list[str]] = {}
    with _workers(options.jobs, len(parts)) as each:
        for outcomes in each(_work, parts):
            for outcome in outcomes:
                counts[outcome.case.reader, outcome.kind] += 1
                if outcome.kind == "accepted":
                    kind = (outcome.case.reader, _kind_of(outcome.done))
                    accepted.setdefault(kind, []).append(f"{outcome.case.seed}: {outcome.done}")
                elif outcome.kind not in ("accepted", "refused"):
                    key = (outcome.case.reader, outcome.kind, outcome.said[-40:])
                    shown[key] += 1
                    if shown[key] <= 2:
                        line = f"FOUND {outcome.case} {outcome.kind}: {outcome.said} ({outcome.done[:200]})"
                        print(line.encode(errors="backslashreplace").decode(), flush=True)  # noqa: T201
    if options.accepted is not None:
        lines = [f"{reader} | {kind} | {len(done)} | {done[0]}\n" for (reader, kind), done in sorted(accepted.items())]
        options.accepted.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    for (reader, kind), number in sorted(counts.items()):
        print(f"{reader:40} {kind:40} {number}")  # noqa: T201
    found = sum(number for (_, kind), number in counts.items() if kind not in ("accepted", "refused"))
    print(f"{sum(counts.values())} inputs, {found} found")  # noqa: T201
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
