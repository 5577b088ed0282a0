"""`hf-mote sae top-tokens`: the tokens and texts that most activate latents, as text and as a page."""

from __future__ import annotations

import re
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
from hf_mote.commands.sae.evaluate import SAE, sae_facts
from hf_mote.commands.sae.excluding import Excluding
from hf_mote.commands.sae.places import OwnHookpoint
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.texts import Text, TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, DataError
from hf_mote.reports.formats import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_mote.sae.activity import LatentActivity
    from hf_mote.sae.top_tokens import LatentProfile

__all__ = ["neuronpedia_ids", "top_tokens_command"]

_SHOWN = 10  # latents, if none is given
_OFTEN = 10  # tokens on which each of them is active at least; a report calls rarer latents "dying"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@bundled
def top_tokens_command(
    context: typer.Context,
    *,
    model: o.Model,
    sae: SAE,
    text: Text,
    latent: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help=f"A latent; may be given several times. By default the {_SHOWN} that are active on most tokens of "
            "the text, which is read twice then.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the page; by default none is written.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Texts and tokens to list.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 50_000,
    context_length: Annotated[int, typer.Option(min=1, help="Maximum length of a sequence, in tokens.")] = 128,
    neuronpedia: Annotated[
        str | None,
        typer.Option(
            help="Write Neuronpedia's upload layout, too: its MODEL_ID/SOURCE_SET, such as gemma-2-2b/res-16k. "
            "Not by default."
        ),
    ] = None,
    hookpoint: OwnHookpoint = None,
    text_column: TextColumn = "text",
    excluding: Excluding,
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
        excluding.check()
        if neuronpedia is not None and output is None:
            raise ConfigError("--neuronpedia", "writes into the folder of --output", fix="Give --output FOLDER.")
        ids = None if neuronpedia is None else neuronpedia_ids(neuronpedia)
        loading.check(model)
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        # From here on torch and transformers are needed.
        from hf_mote.reports.latents import latents_page
        from hf_mote.sae.activity import latent_activity
        from hf_mote.sae.intervene import sites_of
        from hf_mote.sae.neuronpedia import neuronpedia_layer, write_neuronpedia
        from hf_mote.sae.top_tokens import top_activations

        loaded = loaded_sae(sae)
        if ids is not None:
            neuronpedia_layer(loaded, hookpoint)
        at = partial(sites_of, sae=loaded, hookpoint=hookpoint, where="top_activations")
        subject = loading.subject(model, organisms, any_model=True, fits=at)
        context_length = fitting(subject.model, context_length)
        read: dict[str, Any] = {
            "context_length": context_length,
            "text_column": text_column,
            "hookpoint": hookpoint,
            **excluding.arguments(),
        }
        profiled: Callable[..., list[LatentProfile]] = partial(
            top_activations, subject.model, loaded, texts, subject.tokenizer, top=top, **read
        )
        counted = partial(latent_activity, subject.model, loaded, texts, subject.tokenizer, **read)
        if dry_run:
            some_latents = latent or list(range(min(_SHOWN, loaded.config.num_latents)))

            def both(some: int) -> None:
                if not latent:
                    counted(max_tokens=some)
                profiled(some_latents, max_tokens=some)

            chosen = "" if latent else ", those active on most tokens, found by a first reading"
            plan_reading(
                subject,
                text,
                texts,
                both,
                tokens=tokens,
                context_length=context_length,
                text_column=text_column,
                what={**sae_facts(loaded, hookpoint), "latents": f"{len(some_latents):,}{chosen}"},
            )
            return
        with work.of(subject.model) as part_of:
            say(f"reading up to {tokens:,} tokens{'' if latent else ', twice'}")
            note = None
            if not latent:
                activity = counted(max_tokens=tokens, run_folder=part_of("activity"))
                latent = activity.most_active(_SHOWN, least=_OFTEN)
                note = _chosen(activity, latent)
                tell(note)
            profiles = profiled(latent, max_tokens=tokens, run_folder=part_of("profiles" if note else ""))
            for profile in profiles:
                tell(_shown(profile))
            if output is not None:
                named = (
                    f"{type(loaded).__name__} {sae} at {loaded.config.hookpoint or hookpoint} of {model}, on {text}"
                )
                made = provenance_of(context, subject, 0, SAE=sae, text=text)
                page = partial(latents_page, profiles, named, made, note=note)
                figures: dict[str, Any] = {"latents": [_figures(profile) for profile in profiles]}
                if note is not None:
                    figures["chosen"] = note
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
                    finish(folder, figures, made, holds, page)
        if output is not None:
            tell(f"Page: {output}")


def _chosen(activity: LatentActivity, chosen: list[int]) -> str:
    """Return a sentence on the chosen latents."""
    counts, tokens = activity.counts, f"{activity.tokens:,} tokens"
    if not chosen:
        fix = "Give more text, or check --hookpoint."
        raise DataError("TEXT", "activates no latent of the SAE", got=tokens, fix=fix)
    return (
        f"No --latent was given: of {len(counts):,} latents these {len(chosen)} are active on most of the {tokens} "
        f"read, on {counts[chosen[-1]]:,} to {counts[chosen[0]]:,} each; {counts.count(0):,} are active on none."
    )


def neuronpedia_ids(text: str) -> tuple[str, str]:
    """Return model id and source set of an option such as `"gemma-2-2b/gemmascope-res-16k"`.

    Args:
        text (`str`): The value of the option.

    Raises:
        [`ConfigError`]: if it is not two names.
    """
    model, slash, source_set = text.partition("/")
    if not slash or not _NAME.fullmatch(model) or not _NAME.fullmatch(source_set):
        expected = "MODEL_ID/SOURCE_SET of letters, digits, dots and dashes, as gemma-2-2b/gemmascope-res-16k"
        raise ConfigError("--neuronpedia", "must be a model and a source set", got=repr(text), expected=expected)
    return model, source_set


def _shown(profile: LatentProfile) -> str:
    active = f"active on {share(profile.density)} of tokens, at most {profile.largest:.3g}"
    lines = [f"latent {profile.latent}: {active if profile.excerpts else 'no token of this text activates it'}"]
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
