"""The version of this package, and the releases of transformers that it was tested with.

`pyproject.toml` reads the version from here, and every saved file is stamped with it. The first attachment of
a process logs a warning if the installed transformers is newer than all tested releases.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

__all__ = ["STAMPS", "TESTED_TRANSFORMERS", "__version__", "lacking", "warn_if_untested"]

__version__ = "0.1.0"

TESTED_TRANSFORMERS = ("5.13.0", "5.19.0", "5.24.0")
"""Releases of transformers that the core of the tests was run on, oldest first; docs/families.md names the same."""

STAMPS = ("hf_mote_version", "transformers_version")
"""Entries of a saved file that say what wrote it."""


def lacking(found: Collection[str], written: Iterable[str]) -> list[str]:
    """Return the fields that a saved file lacks, though this package writes them always; none for one written by hand.

    A file that says which version wrote it is whole, or damaged. One that does not say so was written by hand, and
    what it leaves out takes its default.

    Args:
        found (`Collection[str]`): The fields of the file.
        written (`Iterable[str]`): The fields that every release writes, stamps among them.
    """
    return [name for name in written if name not in found] if any(stamp in found for stamp in STAMPS) else []


@functools.cache
def warn_if_untested() -> None:
    """Warn, once in a process, of a transformers that is newer than all of [`TESTED_TRANSFORMERS`]."""
    # Here, since `hf-mote --version` needs neither.
    from packaging.version import Version
    from transformers.utils import logging

    newest, installed = TESTED_TRANSFORMERS[-1], _installed()
    if Version(installed) > Version(newest):
        logging.get_logger(__name__).warning(
            "hf_mote %s was run on transformers up to %s, and this is %s. What it assumes of transformers is "
            "checked by `pytest tests/canaries` in its sources.",
            __version__,
            newest,
            installed,
        )


def _installed() -> str:
    import transformers

    return transformers.__version__
