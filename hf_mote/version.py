"""The version of this package, and the releases of transformers that it was run on.

`pyproject.toml` reads the version from here, and every saved file is stamped with it. The first attachment of a
process says so in the log if the installed transformers is newer than all that this package was run on: what
transformers renames, no version number can foresee.
"""

from __future__ import annotations

import functools

import transformers
from packaging.version import Version
from transformers.utils import logging

__all__ = ["TESTED_TRANSFORMERS", "__version__", "warn_if_untested"]

__version__ = "0.1.0.dev0"

TESTED_TRANSFORMERS = ("5.13.0", "5.19.0", "5.24.0")
"""Releases of transformers that the core of the tests was run on, the oldest first; the README names the same."""

logger = logging.get_logger(__name__)


@functools.cache
def warn_if_untested() -> None:
    """Warn, once in a process, of a transformers that is newer than all of [`TESTED_TRANSFORMERS`]."""
    newest = TESTED_TRANSFORMERS[-1]
    if Version(transformers.__version__) > Version(newest):
        logger.warning(
            "hf_mote %s was run on transformers up to %s, and this is %s. What it assumes of transformers is "
            "checked by `pytest tests/canaries` in its sources.",
            __version__,
            newest,
            transformers.__version__,
        )
