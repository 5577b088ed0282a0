"""`hf-mote sae evaluate`: what an SAE loses, how sparse it is, and what the model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles import AS_SAVED, Loading, bundled
from hf_mote.commands.model import Organisms
from hf_mote.commands.run_files import check_output, finish, writing_to
from hf_mote.commands.sae.texts import Settings, Text, TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import DataError, first_line

PICTURE = "sae_report.png"

__all__ = ["SAE", "evaluate_command", "with_adapter"]

SAE = Annotated[str, typer.Argument(help="Folder or Hub id of an SAE, of this library or another one.")]


@bundled
def evaluate_command(
    context: typer.Context,
    model: o.Model,
    sae: SAE,
    text: Text,
    output: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A PEFT adapter that belongs to the SAE, as hf-mote sae adapt writes it.")
    ] = None,
    hookpoint: Annotated[str | None, typer.Option(help="Where the SAE belongs, if it does not say.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to measure it on.")] = 50_000,
    context_length: Annotated[int, typer.Option(min=1, help="Most tokens of a sequence.")] = 256,
    text_column: TextColumn = "text",
    seed: o.Seed = 0,
    loading: Loading = AS_SAVED,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Measure an SAE: reconstruction, sparsity, dead latents, and cross entropy with it spliced into the model."""
    from hf_mote.reports.sae import sae_page
    from hf_mote.sae.convert import load_sae
    from hf_mote.sae.metrics import evaluate_sae

    with reporting():
        if output is not None:
            check_output(output, force=force)
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        loaded = load_sae(sae).train(False)
        subject = loading.subject(model, organisms, any_model=True)
        measured = subject.model if adapter is None else with_adapter(subject.model, adapter)
        say(f"measuring a {type(loaded).__name__} on up to {tokens:,} tokens")
        report = evaluate_sae(
            measured,
            loaded,
            texts,
            subject.tokenizer,
            hookpoint=hookpoint,
            max_tokens=tokens,
            context_length=fitting(subject.model, context_length),
            text_column=text_column,
            with_adapter=adapter is not None,
            seed=seed,
        )
        if output is not None:
            beside = {} if adapter is None else {"adapter": adapter}
            made = provenance_of(context, subject, seed, SAE=sae, text=text, **beside)
            named = f"{type(loaded).__name__} {sae} at {report.hookpoint} of {model}, on {text}"
            holds = {
                report.file_name: "everything measured (SAEReport)",
                PICTURE: "densities, cross entropies, and L0 along the loss",
            }
            with writing_to(output, force=force) as folder:
                report.save_pretrained(folder)
                report.plot(folder / PICTURE)
                picture = (folder / PICTURE).read_bytes()
                finish(
                    folder,
                    dict(report.rows()),
                    made,
                    holds,
                    lambda files: sae_page(report, picture, subject=named, provenance=made, files_written=files),
                )
        for name, value in report.rows():
            tell(f"{name}: {value}")
        if output is not None:
            tell(f"Report: {output}")


def with_adapter(model: Any, adapter: str) -> Any:
    """Return a model with a PEFT adapter, in evaluation mode.

    Args:
        model (`PreTrainedModel`): The model.
        adapter (`str`): Folder or Hub id of the adapter.

    Raises:
        [`DataError`]: if it cannot be loaded.
    """
    import warnings

    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # What PEFT reads of a model that newer transformers call otherwise.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            return PeftModel.from_pretrained(model, adapter).eval()
    # OSError and ValueError for what is missing, RuntimeError for what does not fit, and whatever is below.
    except Exception as error:
        raise DataError(f"--adapter {adapter}", "cannot be loaded", got=first_line(error)) from error
