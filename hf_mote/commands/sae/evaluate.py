"""`hf-mote sae evaluate`: an SAE's reconstruction and sparsity, and the model's cross entropy with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, loaded_sae
from hf_mote.commands.plan import plan_reading
from hf_mote.commands.run_files import Work, check_output, finish, writing_to
from hf_mote.commands.sae.dead_latents import dead_note
from hf_mote.commands.sae.excluding import Excluding
from hf_mote.commands.sae.places import OwnHookpoint
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.texts import Text, TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import DataError, first_line

if TYPE_CHECKING:
    from hf_mote.sae.modeling import SAEModel

PICTURE = "sae_report.png"

__all__ = ["SAE", "evaluate_command", "sae_facts", "with_adapter"]

SAE = Annotated[str, typer.Argument(help="Folder or Hub id of an SAE, of this library or another one.")]


@bundled
def evaluate_command(
    context: typer.Context,
    *,
    model: o.Model,
    sae: SAE,
    text: Text,
    output: Annotated[Path | None, typer.Option(help="Folder for the report; by default none is written.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="A PEFT adapter that belongs to the SAE, as hf-mote sae adapt writes it; none by default."),
    ] = None,
    hookpoint: OwnHookpoint = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to measure it on.")] = 50_000,
    context_length: Annotated[int, typer.Option(min=1, help="Maximum length of a sequence, in tokens.")] = 256,
    text_column: TextColumn = "text",
    excluding: Excluding,
    seed: o.Seed = 0,
    run_folder: o.RunFolder = None,
    loading: Loading,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Measure an SAE: reconstruction, sparsity, dead latents, and cross entropy with it spliced into the model."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        if output is not None:
            check_output(output, force=force)
        work.check()
        excluding.check()
        loading.check(model)
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        # From here on torch and transformers are needed.
        from hf_mote.reports.sae import sae_page
        from hf_mote.sae.intervene import sites_of
        from hf_mote.sae.metrics import evaluate_sae

        loaded = loaded_sae(sae)
        at = partial(sites_of, sae=loaded, hookpoint=hookpoint, where="evaluate_sae")
        subject = loading.subject(model, organisms, any_model=True, fits=at)
        measured = subject.model if adapter is None else with_adapter(subject.model, adapter)
        context_length = fitting(subject.model, context_length)
        measure = partial(
            evaluate_sae,
            measured,
            loaded,
            texts,
            subject.tokenizer,
            hookpoint=hookpoint,
            context_length=context_length,
            text_column=text_column,
            with_adapter=adapter is not None,
            **excluding.arguments(),
            seed=seed,
        )
        if dry_run:
            plan_reading(
                subject,
                text,
                texts,
                lambda some: measure(max_tokens=some),
                tokens=tokens,
                context_length=context_length,
                text_column=text_column,
                what=sae_facts(loaded, hookpoint),
                pictures=0 if output is None else 1,
            )
            return
        with work.of(measured) as part_of:
            say(f"measuring a {type(loaded).__name__} on up to {tokens:,} tokens")
            report = measure(max_tokens=tokens, run_folder=part_of(""))
            note = dead_note(report)
            if output is not None:
                more = {} if adapter is None else {"adapter": adapter}
                made = provenance_of(context, subject, seed, SAE=sae, text=text, **more)
                named = f"{type(loaded).__name__} {sae} at {report.hookpoint} of {model}, on {text}"
                holds = {
                    report.file_name: "everything measured (SAEReport)",
                    PICTURE: "densities, cross entropies, and L0 along the loss",
                }
                with writing_to(output, force=force) as folder:
                    report.save_pretrained(folder)
                    report.plot(folder / PICTURE)
                    finish(
                        folder,
                        dict(report.rows()),
                        made,
                        holds,
                        lambda files: sae_page(report, subject=named, provenance=made, files_written=files, note=note),
                    )
        for name, value in report.rows():
            tell(f"{name}: {value}")
        if note is not None:
            tell(note)
        if output is not None:
            tell(f"Report: {output}")


def sae_facts(sae: SAEModel, hookpoint: str | None) -> dict[str, str]:
    """Return the facts on an SAE that a dry run prints.

    Args:
        sae (`SAEModel`): The SAE.
        hookpoint (`str`, *optional*): Its hookpoint, if its config has none.
    """
    where = hookpoint or sae.config.hookpoint
    return {"SAE": f"{type(sae).__name__}, {sae.config.num_latents:,} latents, at {where}"}


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
            # PEFT reads an attribute that newer transformers renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            return PeftModel.from_pretrained(model, adapter).eval()
    # OSError and ValueError for missing files, RuntimeError for weights that do not fit, and other errors below.
    except Exception as error:
        raise DataError(f"--adapter {adapter}", "cannot be loaded", got=first_line(error)) from error
