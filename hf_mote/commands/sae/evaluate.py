"""`hf-mote sae evaluate`: what an SAE loses, how sparse it is, and what the model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.run_files import writing_to
from hf_mote.commands.sae.texts import Settings, Text, TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import reporting, say, tell

__all__ = ["SAE", "evaluate_command"]

SAE = Annotated[str, typer.Argument(help="Folder or Hub id of an SAE, of this library or another one.")]


def evaluate_command(
    model: o.Model,
    sae: SAE,
    text: Text,
    output: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    hookpoint: Annotated[str | None, typer.Option(help="Where the SAE belongs, if it does not say.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to measure it on.")] = 50_000,
    context_length: Annotated[int, typer.Option(min=1, help="Most tokens of a sequence.")] = 256,
    text_column: TextColumn = "text",
    seed: o.Seed = 0,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    quantization: o.Quantization = None,
    attn_implementation: o.AttnImplementation = None,
    trust_remote_code: o.TrustRemoteCode = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Measure an SAE: reconstruction, sparsity, dead latents, and cross entropy with it spliced into the model."""
    from hf_mote.sae.convert import load_sae
    from hf_mote.sae.metrics import evaluate_sae

    with reporting():
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        loaded = load_sae(sae).train(False)
        subject = load_subject(
            model,
            organisms,
            revision=revision,
            dtype=dtype,
            device=device,
            quantization=quantization,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            any_model=True,
        )
        say(f"measuring a {type(loaded).__name__} on up to {tokens:,} tokens")
        report = evaluate_sae(
            subject.model,
            loaded,
            texts,
            subject.tokenizer,
            hookpoint=hookpoint,
            max_tokens=tokens,
            context_length=fitting(subject.model, context_length),
            text_column=text_column,
            seed=seed,
        )
        if output is not None:
            with writing_to(output, force=force) as folder:
                report.save_pretrained(folder)
        for name, value in report.rows():
            tell(f"{name}: {value}")
        if output is not None:
            tell(f"Report: {output}")
