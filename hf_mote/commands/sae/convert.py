"""`hf-mote sae convert`: converts a sparse autoencoder from the format of one library to that of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands.names import FORMATS, WRITTEN_FORMATS
from hf_mote.commands.session import reporting, tell
from hf_mote.commands.verbosity import settle_progress
from hf_mote.errors import UnknownNameError

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(help="Folder or file, id of a Hub repository, release of SAELens' list, or Neuronpedia id."),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write to.")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(WRITTEN_FORMATS)}.")],
    from_: Annotated[
        str, typer.Option("--from", help=f"Format of the source: {', '.join(FORMATS)}; by default detected.")
    ] = "auto",
    sae_id: Annotated[str | None, typer.Option(help="Id of the SAE in a release; by default the only one.")] = None,
    subfolder: Annotated[
        str | None, typer.Option(help="Folder of the files in the source; by default its top.")
    ] = None,
    file: Annotated[str | None, typer.Option(help="The file with the weights; by default the only one.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Write a README.md, too, that says what is lost.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the sparse autoencoder that the folder holds.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the repository; main by default.")
    ] = None,
) -> None:
    """Write a sparse autoencoder of one library in the format of another, and print what that cannot hold."""
    with reporting():
        for option, name, known in (("--to", to, FORMATS), ("--from", from_, ("auto", *FORMATS))):
            if name not in known:
                raise UnknownNameError.of(option, name, known)
        from hf_mote.sae.convert import export_sae, load_sae
        from hf_mote.sae.convert.registry import check_target, format_named

        settle_progress()
        # Checked first, so that a wrong name does not cost a download.
        check_target(target, format_named(to, where="--to"), force=force)
        # In the stored dtype, so that the values are not rounded.
        sae = load_sae(source, from_, sae_id=sae_id, subfolder=subfolder, file=file, revision=revision, dtype="auto")
        lost = export_sae(sae, target, to, card=card, force=force)
    config = sae.config
    tell(
        f"{type(sae).__name__} of {config.num_latents} latents for activations of width {config.hidden_size}, "
        f"written for {to}: {target}"
    )
    if lost:
        tell(f"Not held by the format, of training: {'; '.join(lost)}")
