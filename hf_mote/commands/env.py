"""`hf-mote env`: versions and devices for a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from hf_mote.version import __version__

__all__ = ["env_command"]

LIBRARIES = (
    "transformers",
    "torch",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
)


def env_command() -> None:
    """Print the versions of the libraries, Python and the device, to paste into a bug report."""
    import torch

    from hf_mote.version import TESTED_TRANSFORMERS

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    rows = {"hf_mote": __version__, **{name: _version(name) for name in LIBRARIES}}
    rows["transformers that the tests ran on"] = ", ".join(TESTED_TRANSFORMERS)
    rows["python"] = platform.python_version()
    rows["platform"] = platform.platform()
    rows["device"] = "cpu" if accelerator is None else f"{accelerator.type} x {torch.accelerator.device_count()}"
    rows["threads"] = str(torch.get_num_threads())
    for name, value in rows.items():
        typer.echo(f"- {name}: {value}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
