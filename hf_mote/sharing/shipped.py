"""The configs that come with the package, in folders `<org>--<model>/<behaviour>`."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["HUB_CONFIGS", "list_shipped", "shipped_folder", "shipped_root"]

HUB_CONFIGS = "hub_configs"
# No Hub id has two hyphens in a row, so that the two parts are unambiguous.
_NAME = re.compile(r"[\w.]+(?:-[\w.]+)*--[\w.-]+/[\w.-]+")


def shipped_root() -> Path:
    """Return the folder that holds the configs: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / HUB_CONFIGS
    return inside if inside.is_dir() else package.parent / HUB_CONFIGS


def list_shipped() -> list[str]:
    """Return the names of the configs, such as "hf_mote--refusal-organism/refusal"."""
    root = shipped_root()
    found = (path.parent for pattern in ("mote_config.json", "recipe.yaml") for path in root.glob(f"*/*/{pattern}"))
    return sorted({path.relative_to(root).as_posix() for path in found})


def shipped_folder(name: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a config by its name, with or without "hub_configs/" before it; `None` for any other name.

    Args:
        name (`str` or `os.PathLike`): What was given.
    """
    plain = os.fspath(name).replace("\\", "/").removeprefix(f"{HUB_CONFIGS}/").rstrip("/")
    return shipped_root() / plain if _NAME.fullmatch(plain) and plain in list_shipped() else None
