"""`hf-mote bake`: a config folded into a plain checkpoint that any engine loads, where that is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.model import Organisms, check_loading, load_subject
from hf_mote.commands.session import reporting, say, tell
from hf_mote.errors import FileFormatError
from hf_mote.folders import check_folder

__all__ = ["bake_command"]


def bake_command(
    model: o.Model,
    config: Annotated[str, typer.Argument(help="Config to fold in: a folder, a file or a Hub id.")],
    output: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    trust_remote_code: o.TrustRemoteCode = False,
    allow_other_weights: o.AllowOtherWeights = False,
) -> None:
    """Fold a config into a plain checkpoint: mode zero and gains, and reroute or bias if the routers can hold them.

    Mode drop, the default of ftri and attribute, cannot be baked: make the config with --mode zero there.
    """
    with reporting():
        # Checked first, so that a wrong path does not cost loading a large model.
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileFormatError(str(output), "must be a new or an empty folder", fix="Give a new folder.")
        check_folder(output, str(output))
        check_loading(model, dtype=dtype)
        from hf_mote.mote.bake import bake_mote
        from hf_mote.mote.patch import load_config

        chosen = load_config(config)
        subject = load_subject(
            model, Organisms(), revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        say("baking, and comparing the baked blocks with the live ones")
        baked = bake_mote(subject.model, chosen, allow_other_weights=allow_other_weights)
        baked.save_pretrained(output, subject.tokenizer)
        shown = "bit for bit" if baked.proof.exact else f"within {baked.proof.block_difference:.1e}"
        tell(f"{len(baked.changes)} tensors changed; every changed block equals that with the live profile, {shown}.")
        tell(f"Checkpoint and card: {output}")
