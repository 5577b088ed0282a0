"""`hf-mote sae convert`: a sparse autoencoder of one library, written as another writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands.names import FORMATS, WRITTEN_FORMATS
from hf_mote.commands.session import reporting, tell
from hf_mote.errors import UnknownNameError

__all__ = ["convert"]


def convert(
    source: Annotated[str, typer.Argument(help="Folder, or id of a Hub repository.")],
    target: Annotated[Path, typer.Argument(help="Folder to write to.")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(WRITTEN_FORMATS)}.")],
    from_: Annotated[
        str, typer.Option("--from", help=f"Format of the source: {', '.join(FORMATS)}; by default found out.")
    ] = "auto",
    subfolder: Annotated[str | None, typer.Option(help="Where the files are in the source.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
) -> None:
    """Write a sparse autoencoder of one library as another writes it, and say what that format cannot hold."""
    with reporting():
        for option, name, known in (("--to", to, FORMATS), ("--from", from_, ("auto", *FORMATS))):
            if name not in known:
                raise UnknownNameError.of(option, name, known)
        from transformers.utils.logging import disable_progress_bar

        from hf_mote.sae.convert import export_sae, load_sae
        from hf_mote.sae.convert.registry import check_target, format_named

        disable_progress_bar()
        # First, so that a slip of the pen does not cost a download.
        check_target(target, format_named(to, where="--to"))
        sae = load_sae(source, from_, subfolder=subfolder, revision=revision)
        lost = export_sae(sae, target, to)
    config = sae.config
    tell(
        f"{type(sae).__name__} of {config.num_latents} latents for activations of width {config.hidden_size}, "
        f"written for {to}: {target}"
    )
    if lost:
        tell(f"Not held, of training: {'; '.join(lost)}")
