"""`hf-mote sae adapt`: trains a LoRA that reduces the loss of a model with its SAE, measured with and without."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, Subject, loaded_sae
from hf_mote.commands.run_files import Work, check_output, writing_to
from hf_mote.commands.sae.evaluate import SAE
from hf_mote.commands.sae.excluding import Excluding, splice_call
from hf_mote.commands.sae.places import OwnHookpoint
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.texts import Text, TextColumn, read_texts, texts_fact
from hf_mote.commands.sae.train import fitting, held_out_of
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.hub import card_header, public_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hf_mote.sae.report import SAEReport

__all__ = ["adapt_command"]


@bundled
def adapt_command(
    context: typer.Context,
    *,
    model: o.Model,
    sae: SAE,
    text: Text,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA.")] = 16,
    hookpoint: OwnHookpoint = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on; a shorter text is read again.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW.")] = 1e-3,
    context_length: Annotated[int, typer.Option(min=2, help="Maximum length of a sequence, in tokens.")] = 256,
    evaluation_tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens for the reports.")] = 20_000,
    text_column: TextColumn = "text",
    excluding: Excluding,
    seed: o.Seed = 0,
    run_folder: o.RunFolder = None,
    loading: Loading,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Adapt a model to its SAE by a LoRA in the layers after it, and measure both on held-out text."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        check_output(output, force=force)
        work.check()
        excluding.check()
        loading.check(model)
        organisms = Organisms()
        kept, held_out = held_out_of(text, read_texts(text, text_column, organisms))
        # From here on torch and transformers are needed.
        from hf_mote.sae.intervene import sites_of
        from hf_mote.sae.metrics import evaluate_sae
        from hf_mote.sae.training.adapt import adapt_to_sae, lora_after, splice_arguments

        loaded = loaded_sae(sae)
        at = partial(sites_of, sae=loaded, hookpoint=hookpoint, where="adapt_to_sae")
        subject = loading.subject(model, organisms, any_model=True, fits=at)
        context_length = fitting(subject.model, context_length)
        _, writes = at(subject.model)
        made = provenance_of(context, subject, seed, SAE=sae, text=text)
        name = public_name(subject.model.config.name_or_path or subject.name)
        read: dict[str, Any] = {
            "hookpoint": hookpoint,
            "context_length": context_length,
            "text_column": text_column,
            **excluding.arguments(),
        }
        train = partial(
            adapt_to_sae,
            subject.model,
            loaded,
            kept,
            lora_after(subject.model, writes, rank=rank),
            tokenizer=subject.tokenizer,
            batch_size=batch,
            learning_rate=learning_rate,
            seed=seed,
            **read,
        )

        def measure(model: Any, **more: Any) -> SAEReport:
            return evaluate_sae(model, loaded, held_out, subject.tokenizer, **read, **more)

        if dry_run:
            _plan(subject, text, kept, held_out, train, measure, tokens, evaluation_tokens, batch, read, rank)
            return
        with work.of(subject.model) as part_of, writing_to(output, force=force) as folder:
            say("measuring the SAE without an adapter")
            before = measure(subject.model, max_tokens=evaluation_tokens, run_folder=part_of("without"))
            spliced = splice_arguments(subject.model, loaded, kept, tokenizer=subject.tokenizer, **read)
            say(f"training a LoRA of rank {rank} on {tokens:,} tokens")
            adapted = train(max_tokens=tokens, run_folder=part_of("training"))
            after = measure(adapted, max_tokens=evaluation_tokens, with_adapter=True, run_folder=part_of("with"))
            adapted.save_pretrained(str(folder))
            before.save_pretrained(folder / "without")
            after.save_pretrained(folder / "with")
            (folder / "README.md").write_text(_card(name, sae, before, after, made, spliced), encoding="utf-8")
        for row in _rows(before, after):
            tell(f"{row[0]}: {row[1]} without the adapter, {row[2]} with it")
        tell(f"Adapter, reports and card: {output}")


def _plan(
    subject: Subject,
    source: str,
    kept: list[Any],
    held_out: list[Any],
    train: Callable[..., Any],
    measure: Callable[..., Any],
    tokens: int,
    evaluation_tokens: int,
    batch: int,
    read: dict[str, Any],
    rank: int,
) -> None:
    """Print what would be done, after measuring on a batch and training for a step."""
    from hf_mote.commands.plan import Timed, Work, plan_training, tokens_of

    length, column = read["context_length"], read["text_column"]
    seen = tokens_of(subject.tokenizer, held_out, evaluation_tokens, context_length=length, text_column=column)
    some = min(8 * length, seen)
    timed = Timed.of(
        f"{some:,} held-out tokens",
        lambda: measure(subject.model, max_tokens=some),
        warm_up=lambda: measure(subject.model, max_tokens=1),
    )
    step = batch * length
    what = {
        "texts": texts_fact(source, len(kept), len(held_out)),
        "tokens": f"{tokens:,} to train on, {seen:,} to measure on twice, {step:,} a step",
        "adapter": f"a LoRA of rank {rank}",
    }
    plan_training(
        lambda: train(max_tokens=step),
        1,
        steps=math.ceil(tokens / step),
        what=what,
        more=[Work(timed, 2 * seen / max(some, 1))],
        again=False,  # the adapter is in the model now
    )


def _rows(before: SAEReport, after: SAEReport) -> list[tuple[str, str, str]]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    clean = f"cross entropy with the SAE (plain model: {before.ce['clean']:.4g})"
    return [
        (clean, f"{before.ce['sae']:.4g}", f"{after.ce['sae']:.4g}"),
        ("KL from the plain model", f"{before.kl['sae']:.4g}", f"{after.kl['sae']:.4g}"),
        *(
            (f"{what} recovered ({name} ablation)", share(one[name]), share(other[name]))
            for what, one, other in (
                ("cross entropy", before.ce_recovered, after.ce_recovered),
                ("KL", before.kl_recovered, after.kl_recovered),
            )
            for name in one
        ),
    ]


def _card(
    model: str | None,
    sae: str,
    before: SAEReport,
    after: SAEReport,
    made: Mapping[str, str],
    spliced: Mapping[str, Any],
) -> str:
    rows = "\n".join(f"| {' | '.join(row)} |" for row in _rows(before, after))
    how = "\n".join(f"- {name}: {value}" for name, value in made.items())
    return (
        f"{card_header(base_model=model, about='sparse-autoencoder')}\n# Adapter for a model with its SAE\n\n"
        f"A LoRA for `{model}` with the SAE `{public_name(sae) or 'that is not named'}` spliced in at "
        f"`{before.hookpoint}`. Without the SAE, switch the adapter off.\n\n```python\nimport hf_mote\n"
        'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(model, "<this repository or folder>")\n'
        f"handle = {splice_call(spliced)}\n```\n\n"
        f"## On {before.tokens:,} held-out tokens\n\n| | without | with |\n| --- | --: | --: |\n{rows}\n\n"
        f"## How it was made\n\n{how}\n"
    )
