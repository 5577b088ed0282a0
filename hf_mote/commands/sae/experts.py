"""`hf-mote sae experts`: the latents of an SAE that drive or predict experts, as a table, a file and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.latent_maps import MORE
from hf_mote.commands.model import Organisms, Subject, loaded_sae
from hf_mote.commands.names import LINK_METHODS
from hf_mote.commands.run_files import Work, check_output, finish, writing_to
from hf_mote.commands.sae.evaluate import SAE, sae_facts
from hf_mote.commands.sae.places import OwnHookpoint
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.steer import read_edit
from hf_mote.commands.sae.texts import TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hf_mote.links.latent_expert_map import LatentExpertMap, LatentLink
    from hf_mote.sae.modeling import SAEModel

__all__ = ["experts_command"]

_SHOWN = 5  # latents of which a page shows texts
_TIMED = 1024  # latents that a dry run links by weights


@bundled
def experts_command(
    context: typer.Context,
    *,
    model: o.Model,
    sae: SAE,
    text: Annotated[
        str | None,
        typer.Argument(
            help="Text, as for the other commands: for interventions and predictions, and for texts on the page."
        ),
    ] = None,
    method: Annotated[
        list[str],
        typer.Option(
            help=f"{', '.join(LINK_METHODS)}: by weights (of a router's input) or intervention, latents that drive "
            "experts; by prediction, latents that are active when they are chosen. Give several to compare them."
        ),
    ] = ["weights"],  # noqa: B006 (typer copies it)
    latent: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="A latent; may be given several times. By default all; for interventions the first ones by the other "
            "methods given, or else the most active ones.",
        ),
    ] = None,
    edit: Annotated[str, typer.Option(help="Edit of each latent: ablate, +5, x2 or clamp:5.")] = "ablate",
    top: Annotated[int, typer.Option(min=1, help="Links to list.")] = 20,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the table and the page; by default none is written.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 10_000,
    context_length: Annotated[int, typer.Option(min=1, help="Maximum length of a sequence, in tokens.")] = 128,
    hookpoint: OwnHookpoint = None,
    text_column: TextColumn = "text",
    run_folder: o.RunFolder = None,
    loading: Loading,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Show the latents that drive experts, by the router's weights or by changing them, or predict their choice."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        if output is not None:
            check_output(output, force=force)
        work.check()
        for one in method:
            one_of("--method", one, LINK_METHODS)
            if one != "weights" and text is None:
                fix = "Give a file, a folder or a data set."
                raise ConfigError("TEXT", f"method {one} needs a text", fix=fix)
        methods = list(dict.fromkeys(method))
        changed = read_edit(f"0={edit}", "--edit")[1]
        loading.check(model)
        organisms = Organisms()
        texts = None if text is None else read_texts(text, text_column, organisms)
        # From here on torch and transformers are needed.
        from hf_mote.reports.links import links_page
        from hf_mote.sae.intervene import sites_of
        from hf_mote.sae.top_tokens import top_activations

        loaded = loaded_sae(sae)
        at = partial(sites_of, sae=loaded, hookpoint=hookpoint, where="link_latents")
        subject = loading.subject(model, organisms, fits=at)
        read: dict[str, Any] = {
            "max_tokens": tokens,
            "context_length": fitting(subject.model, context_length),
            "text_column": text_column,
            "hookpoint": hookpoint,
        }
        if dry_run:
            _plan(subject, loaded, text, texts, methods, latent, changed, read, paged=output is not None)
            return
        with work.of(subject.model) as part_of:
            say(f"linking latents of a {type(loaded).__name__} with experts, by {', '.join(methods)}")
            found = _linked(subject, loaded, texts, methods, latent, changed, top, read, part_of)
            strongest = {name: links.top(top) for name, links in found.items()}
            for name, first in strongest.items():
                if len(methods) > 1:
                    tell(f"By {name}:")
                for link in first:
                    tell(f"latent {link.latent}: {link.value:+.4g} on expert {link.expert} of layer {link.layer}")
                if not first:
                    tell(f"No latent {'predicts' if name == 'prediction' else 'drives'} any expert.")
            if output is not None:
                shown = _named(strongest.values())[:_SHOWN]
                profiles = []
                if texts is not None and shown:
                    profiles = top_activations(
                        subject.model, loaded, texts, subject.tokenizer, shown, run_folder=part_of("texts"), **read
                    )
                named = f"{type(loaded).__name__} {sae} at {loaded.config.hookpoint or hookpoint} of {model}"
                read_by = {} if text is None else {"text": text}
                made = provenance_of(context, subject, 0, SAE=sae, **read_by)
                listed = {name: [link._asdict() for link in first] for name, first in strongest.items()}
                figures: dict[str, Any] = {"method": methods[0], "links": listed[methods[0]]}
                if len(methods) > 1:
                    figures["methods"] = listed
                holds = {}
                with writing_to(output, force=force) as folder:
                    for place, (name, links) in enumerate(found.items()):
                        where = folder if place == 0 else folder / MORE / name
                        links.save_pretrained(where)
                        saved = (where / links.file_name).relative_to(folder).as_posix()
                        does = "how well each latent predicts" if name == "prediction" else "what each latent does to"
                        holds[saved] = f"{does} each expert, by {name} (LatentExpertMap)"
                    finish(
                        folder,
                        figures,
                        made,
                        holds,
                        lambda files: links_page(
                            list(found.values()),
                            profiles,
                            top=top,
                            subject=named,
                            provenance=made,
                            files_written=files,
                        ),
                    )
        if output is not None:
            tell(f"Table and page: {output}")


def _linked(
    subject: Subject,
    sae: SAEModel,
    texts: list[Any] | None,
    methods: list[str],
    latents: list[int] | None,
    edit: Any,
    top: int,
    read: dict[str, Any],
    part_of: Callable[[str], Path | None],
) -> dict[str, LatentExpertMap]:
    """Return a map for each method; interventions come last, on the first latents by the other methods."""
    from hf_mote.links.link import MOST_CHANGED, link_latents

    found: dict[str, LatentExpertMap] = {}
    for method in ("weights", "prediction", "intervention"):
        if method not in methods:
            continue
        chosen = latents or None
        if method == "intervention" and chosen is None:
            chosen = _named([links.top(top) for links in found.values()])[:MOST_CHANGED] or None
        by_text = method != "weights"
        found[method] = link_latents(
            subject.model,
            sae,
            texts if by_text else None,
            subject.tokenizer if by_text else None,
            method=method,
            latents=chosen,
            edit=edit,
            run_folder=part_of("links" if len(methods) == 1 else f"links-{method}"),
            **read,
        )
    return {method: found[method] for method in methods}


def _named(lists: Iterable[Sequence[LatentLink]]) -> list[int]:
    """Return the latents of several lists of links, the first of each list first."""
    merged = (link for place in zip_longest(*lists) for link in place if link is not None)
    return list(dict.fromkeys(link.latent for link in merged))


def _plan(
    subject: Subject,
    sae: SAEModel,
    source: str | None,
    texts: list[Any] | None,
    methods: list[str],
    latents: list[int] | None,
    edit: Any,
    read: dict[str, Any],
    *,
    paged: bool,
) -> None:
    """Print what would be done, after linking some latents, or reading some text."""
    from hf_mote.commands.plan import Timed, Work, plan, plan_reading
    from hf_mote.links.link import link_latents
    from hf_mote.sae.top_tokens import top_activations

    facts = {**sae_facts(sae, read["hookpoint"]), "method": ", ".join(methods)}
    work = []
    by_text = [method for method in methods if method != "weights"]
    if "weights" in methods:
        chosen = latents or list(range(sae.config.num_latents))
        first = chosen[:_TIMED]
        once = partial(link_latents, subject.model, sae, latents=first, **{**read, "max_tokens": 1})
        work = [Work(Timed.of(f"{len(first):,} latents", once), len(chosen) / len(first))]
        facts["latents"] = f"{len(chosen):,}"
    if texts is None or source is None or not (by_text or paged):
        plan(facts, work)
        return

    def reading(tokens: int) -> None:
        given: dict[str, Any] = {**read, "max_tokens": tokens}
        for method in by_text:
            # If other methods choose the latents to change, as many of the most active ones are timed instead.
            given_latents: dict[str, Any] = {"latents": latents or None, "edit": edit, **given}
            link_latents(subject.model, sae, texts, subject.tokenizer, method=method, **given_latents)  # type: ignore[arg-type]
        if paged:
            shown = (latents or list(range(sae.config.num_latents)))[:_SHOWN]
            top_activations(subject.model, sae, texts, subject.tokenizer, shown, **given)

    plan_reading(
        subject,
        source,
        texts,
        reading,
        tokens=read["max_tokens"],
        context_length=read["context_length"],
        text_column=read["text_column"],
        what=facts,
        more=work,
    )
