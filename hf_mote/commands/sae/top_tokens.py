"""`hf-mote sae top-tokens`: the tokens and texts that most activate latents, as text and as a page."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, loaded_sae
from hf_mote.commands.plan import plan_reading
from hf_mote.commands.run_files import Work, check_output, finish, writing_to
from hf_mote.commands.sae.evaluate import SAE, sae_facts
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.texts import Text, TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError

if TYPE_CHECKING:
    from hf_mote.sae.top_tokens import LatentProfile

__all__ = ["neuronpedia_ids", "top_tokens_command"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@bundled
def top_tokens_command(
    context: typer.Context,
    *,
    model: o.Model,
    sae: SAE,
    text: Text,
    latent: Annotated[list[int], typer.Option(min=0, help="A latent; may be given several times.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the page; by default none is written.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Texts and tokens to list.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 50_000,
    context_length: Annotated[int, typer.Option(min=1, help="Most tokens of a sequence.")] = 128,
    neuronpedia: Annotated[
        str | None,
        typer.Option(
            help="Write Neuronpedia's upload layout, too: its MODEL_ID/SOURCE_SET, as gemma-2-2b/res-16k. "
            "Not by default."
        ),
    ] = None,
    hookpoint: Annotated[
        str | None, typer.Option(help="Where the SAE belongs; by default where its own config says.")
    ] = None,
    text_column: TextColumn = "text",
    run_folder: o.RunFolder = None,
    loading: Loading,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Show where latents are most active in a text, how often, and which tokens they promote."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        if output is not None:
            check_output(output, force=force)
        work.check()
        if not latent:
            raise ConfigError("--latent", "no latent is given", expected="--latent 12")
        if neuronpedia is not None and output is None:
            raise ConfigError("--neuronpedia", "writes into the folder of --output", fix="Give --output FOLDER.")
        ids = None if neuronpedia is None else neuronpedia_ids(neuronpedia)
        loading.check(model)
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        # From here on torch and transformers are needed.
        from hf_mote.reports.latents import latents_page
        from hf_mote.sae.neuronpedia import neuronpedia_layer, write_neuronpedia
        from hf_mote.sae.top_tokens import top_activations

        loaded = loaded_sae(sae)
        if ids is not None:
            neuronpedia_layer(loaded, hookpoint)
        subject = loading.subject(model, organisms, any_model=True)
        context_length = fitting(subject.model, context_length)
        read = partial(
            top_activations,
            subject.model,
            loaded,
            texts,
            subject.tokenizer,
            latent,
            top=top,
            context_length=context_length,
            text_column=text_column,
            hookpoint=hookpoint,
        )
        if dry_run:
            plan_reading(
                subject,
                text,
                texts,
                lambda some: read(max_tokens=some),
                tokens=tokens,
                context_length=context_length,
                text_column=text_column,
                what={**sae_facts(loaded, hookpoint), "latents": f"{len(latent):,}"},
            )
            return
        with work.of(subject.model) as part_of:
            say(f"reading up to {tokens:,} tokens")
            profiles = read(max_tokens=tokens, run_folder=part_of(""))
            for profile in profiles:
                tell(_shown(profile))
            if output is not None:
                named = (
                    f"{type(loaded).__name__} {sae} at {loaded.config.hookpoint or hookpoint} of {model}, on {text}"
                )
                made = provenance_of(context, subject, 0, SAE=sae, text=text)
                figures = {"latents": [_figures(profile) for profile in profiles]}
                with writing_to(output, force=force) as folder:
                    holds: dict[str, str] = {}
                    if ids is not None:
                        written = write_neuronpedia(
                            folder,
                            profiles,
                            loaded,
                            model_id=ids[0],
                            source_set=ids[1],
                            dataset=text,
                            num_tokens=tokens,
                            context_length=context_length,
                            hookpoint=hookpoint,
                        )
                        holds = dict.fromkeys(written, "for Neuronpedia")
                    finish(folder, figures, made, holds, lambda files: latents_page(profiles, named, made, files))
        if output is not None:
            tell(f"Page: {output}")


def neuronpedia_ids(text: str) -> tuple[str, str]:
    """Return model id and source set of an option such as `"gemma-2-2b/gemmascope-res-16k"`.

    Args:
        text (`str`): What was given.

    Raises:
        [`ConfigError`]: if it is not two names.
    """
    model, slash, source_set = text.partition("/")
    if not slash or not _NAME.fullmatch(model) or not _NAME.fullmatch(source_set):
        expected = "MODEL_ID/SOURCE_SET of letters, digits, dots and dashes, as gemma-2-2b/gemmascope-res-16k"
        raise ConfigError("--neuronpedia", "must be a model and a source set", got=repr(text), expected=expected)
    return model, source_set


def _shown(profile: LatentProfile) -> str:
    lines = [f"latent {profile.latent}: active on {profile.density:.2%} of tokens, at most {profile.largest:.3g}"]
    for excerpt in profile.excerpts:
        pieces = [f"»{piece}«" if at == excerpt.place else piece for at, piece in enumerate(excerpt.pieces)]
        lines.append(f"  {max(excerpt.values):8.3f}  {' '.join(''.join(pieces).split())}")
    for name, tokens in (("promotes", profile.promoted), ("suppresses", profile.suppressed)):
        if tokens:
            lines.append(f"  {name}: " + ", ".join(repr(piece) for piece, _ in tokens))
    return "\n".join(lines)


def _figures(profile: LatentProfile) -> dict[str, object]:
    return {
        "latent": profile.latent,
        "density": profile.density,
        "largest": profile.largest,
        "excerpts": [excerpt._asdict() for excerpt in profile.excerpts],
        "promoted": [list(entry) for entry in profile.promoted],
        "suppressed": [list(entry) for entry in profile.suppressed],
        "histogram": profile.histogram._asdict(),
        "logit_histogram": profile.logit_histogram._asdict(),
    }
