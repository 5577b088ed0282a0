"""`hf-mote sae experts`: which latents of an SAE drive which experts, as a table, a file and a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, Subject, loaded_sae
from hf_mote.commands.run_files import Work, check_output, finish, writing_to
from hf_mote.commands.sae.evaluate import SAE, sae_facts
from hf_mote.commands.sae.settings import Settings
from hf_mote.commands.sae.steer import read_edit
from hf_mote.commands.sae.texts import TextColumn, read_texts
from hf_mote.commands.sae.train import fitting
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hf_mote.sae.modeling import SAEModel

__all__ = ["experts_command"]

METHODS = ("weights", "intervention")
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
        typer.Argument(help="Text, as of the other commands: for interventions, and for texts on the page."),
    ] = None,
    method: Annotated[str, typer.Option(help="weights (of a router's input), or intervention.")] = "weights",
    latent: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A latent; may be given several times. By default all, or those active most."),
    ] = None,
    edit: Annotated[str, typer.Option(help="What is done to each: ablate, +5, x2 or clamp:5.")] = "ablate",
    top: Annotated[int, typer.Option(min=1, help="Links to list.")] = 20,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the table and the page; by default none is written.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 10_000,
    context_length: Annotated[int, typer.Option(min=1, help="Most tokens of a sequence.")] = 128,
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
    """Show which latents drive which experts: by the router's weights, or by changing latents while a text is read."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        if output is not None:
            check_output(output, force=force)
        work.check()
        one_of("--method", method, METHODS)
        if method == "intervention" and text is None:
            raise ConfigError("TEXT", "an intervention needs a text", fix="Give a file, a folder or a data set.")
        changed = read_edit(f"0={edit}", "--edit")[1]
        loading.check(model)
        organisms = Organisms()
        texts = None if text is None else read_texts(text, text_column, organisms)
        # From here on torch and transformers are needed.
        from hf_mote.links.link import link_latents
        from hf_mote.reports.links import links_page
        from hf_mote.sae.top_tokens import top_activations

        loaded = loaded_sae(sae)
        subject = loading.subject(model, organisms)
        read: dict[str, Any] = {
            "max_tokens": tokens,
            "context_length": fitting(subject.model, context_length),
            "text_column": text_column,
            "hookpoint": hookpoint,
        }
        if dry_run:
            _plan(subject, loaded, text, texts, method, latent, changed, read, paged=output is not None)
            return
        with work.of(subject.model) as part_of:
            say(f"linking latents of a {type(loaded).__name__} with experts, by {method}")
            by_text = method == "intervention"
            links = link_latents(
                subject.model,
                loaded,
                texts if by_text else None,
                subject.tokenizer if by_text else None,
                method=method,  # type: ignore[arg-type]
                latents=latent or None,
                edit=changed,
                run_folder=part_of("links"),
                **read,
            )
            strongest = links.top(top)
            for link in strongest:
                tell(f"latent {link.latent}: {link.value:+.4g} on expert {link.expert} of layer {link.layer}")
            if not strongest:
                tell("No latent drives any expert.")
            if output is not None:
                shown = list(dict.fromkeys(link.latent for link in strongest))[:_SHOWN]
                profiles = []
                if texts is not None and shown:
                    profiles = top_activations(
                        subject.model, loaded, texts, subject.tokenizer, shown, run_folder=part_of("texts"), **read
                    )
                named = f"{type(loaded).__name__} {sae} at {loaded.config.hookpoint or hookpoint} of {model}"
                read_by = {} if text is None else {"text": text}
                made = provenance_of(context, subject, 0, SAE=sae, **read_by)
                figures = {"method": method, "links": [link._asdict() for link in strongest]}
                holds = {links.file_name: "what each latent does to each expert (LatentExpertMap)"}
                with writing_to(output, force=force) as folder:
                    links.save_pretrained(folder)
                    finish(
                        folder,
                        figures,
                        made,
                        holds,
                        lambda files: links_page(
                            links, profiles, top=top, subject=named, provenance=made, files_written=files
                        ),
                    )
        if output is not None:
            tell(f"Table and page: {output}")


def _plan(
    subject: Subject,
    sae: SAEModel,
    source: str | None,
    texts: list[Any] | None,
    method: str,
    latents: list[int] | None,
    edit: Any,
    read: dict[str, Any],
    *,
    paged: bool,
) -> None:
    """Print what would be done, having linked some latents, or read some text."""
    from hf_mote.commands.plan import Timed, Work, plan, plan_reading
    from hf_mote.links.link import link_latents
    from hf_mote.sae.top_tokens import top_activations

    facts = {**sae_facts(sae, read["hookpoint"]), "method": method}
    work = []
    if method == "weights":
        wanted = latents or list(range(sae.config.num_latents))
        first = wanted[:_TIMED]
        once = partial(link_latents, subject.model, sae, latents=first, **{**read, "max_tokens": 1})
        work = [Work(Timed.of(f"{len(first):,} latents", once), len(wanted) / len(first))]
        facts["latents"] = f"{len(wanted):,}"
    if texts is None or source is None or (method == "weights" and not paged):
        plan(facts, work)
        return

    def reading(tokens: int) -> None:
        given: dict[str, Any] = {**read, "max_tokens": tokens}
        if method == "intervention":
            given_latents: dict[str, Any] = {"latents": latents or None, "edit": edit, **given}
            link_latents(subject.model, sae, texts, subject.tokenizer, method="intervention", **given_latents)
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
