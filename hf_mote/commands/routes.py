"""`hf-mote routes`: what a token of a prompt would have made of other experts, route by route."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Pairing
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.bundles.results import Writing
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import PromptSet, read_prompts, typed_prompts
from hf_mote.commands.run_files import PAGE, finish
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, DataError, ModelMismatchError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_mote.commands.model import Subject
    from hf_mote.ranking.causal.counterfactual import CounterfactualRoutes
    from hf_mote.reports.routes import Rerouted

__all__ = ["routes_command"]

OUTPUT = Writing(Path("hf-mote-routes"))


@bundled
def routes_command(
    context: typer.Context,
    *,
    model: o.Model,
    prompts: o.PromptsIfAny = None,
    prompt: o.Prompt = None,
    pairing: Pairing,
    position: Annotated[
        int,
        typer.Option(
            help="The token of each prompt, chat template included: 0, 1, ... from its first, -1, -2, ... from its "
            "last."
        ),
    ] = -1,
    layers: Annotated[
        str | None, typer.Option(help="Decoder layers to try, as in 2,3; all with a router by default.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="Routes for each expert that the token chose: the next best one, two, ...")
    ] = 1,
    writing: Writing = OUTPUT,
    top: Annotated[int, typer.Option(min=1, help="Routes to list; the files hold all.")] = 10,
    seed: o.Seed = 0,
    limit: o.Limit = None,
    prompt_field: o.PromptField = None,
    templating: Templating,
    batch_size: Annotated[int, typer.Option(min=1, help="Routes that run together.", rich_help_panel="Model")] = 8,
    loading: Loading,
) -> None:
    """Try other experts at one token: which exchanges of an expert would have changed the answer, and by how much."""
    work = writing.work()
    with reporting(kept=work.word):
        writing.check()
        wanted = None if layers is None else _layers(layers)
        settings: dict[str, Any] = {"batch_size": batch_size, **templating.settings()}
        loading.check(model)
        organisms = Organisms()
        asked = _asked(prompts, prompt, organisms, prompt_field=prompt_field, limit=limit, seed=seed)
        targets, baselines = pairing.responses(asked)
        # From here on torch and transformers are needed.
        from hf_mote.commands.token_routing import token_texts
        from hf_mote.ranking.causal.counterfactual import counterfactual_routes
        from hf_mote.reports.routes import Rerouted, RoutedPrompt, routes_verdict

        tokens: list[list[int]] = []

        def ready(found: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
            tokens.extend(found)
            _check_tokens(asked, found, tokenizer, targets, baselines, position)

        subject = loading.subject(
            model,
            organisms,
            templating=templating,
            prompts=asked.prompts,
            ready=ready,
            fits=lambda bare: _check_layers(bare, wanted),
        )

        def routes_of(place: int, **options: Any) -> CounterfactualRoutes:
            return counterfactual_routes(
                subject.model,
                subject.tokenizer,
                asked.prompts[place],
                response=targets[place],
                baseline_response=baselines[place],
                position=position,
                **settings,
                **options,
            )

        if writing.dry_run:
            longest = max(range(len(tokens)), key=lambda place: len(tokens[place]))
            asking = partial(routes_of, longest, progress=False)
            _plan(subject, asked, asking, wanted, candidates, batch_size)
            return
        with work.of(subject.model) as part_of, writing.folder() as folder:
            number = len(asked.prompts)
            say(f"rerouting one token of {number} prompts" if number > 1 else "rerouting one token")
            texts, rerouted = asked.texts, []
            for place in range(number):
                kept = part_of(f"prompt-{place:06d}")
                routes = routes_of(place, candidates=candidates, layers=wanted, run_folder=kept)
                pieces = token_texts(subject.tokenizer, tokens[place])
                rerouted.append(RoutedPrompt(texts[place], targets[place], baselines[place], pieces, routes))
            found = Rerouted(subject.name, rerouted, top)
            more = {"prompts": f"{asked.source} ({number})", "position": str(position)}
            _write(folder, found, provenance_of(context, subject, seed, **more))
        Console().print(_table(found))
        tell(routes_verdict(found)[0])
        tell(f"Report: {writing.output / PAGE}")


def _layers(given: str) -> list[int]:
    found = [int(number) for number in o.numbers_in("--layers", given, int)]
    if found[0] < 0:
        raise ConfigError("--layers", "must be layers, counted from 0", got=repr(given), expected="as in 2,3")
    return found


def _asked(
    source: str | None,
    typed: list[str] | None,
    organisms: Organisms,
    *,
    prompt_field: str | None,
    limit: int | None,
    seed: int,
) -> PromptSet:
    if typed:
        for name, value in (("PROMPTS", source), ("--prompt-field", prompt_field), ("--limit", limit)):
            if value is not None:
                what = "and --prompt are both given" if value is source else "is for PROMPTS, and --prompt is given"
                raise ConfigError(name, what, got=value, fix="Leave one of them out.")
        return typed_prompts(typed)
    if source is None:
        raise ConfigError("PROMPTS", "is missing", fix="Give a file or another source of prompts, or --prompt TEXT.")
    return read_prompts(source, organisms, prompt_field=prompt_field, limit=limit, seed=seed)


def _check_tokens(
    asked: PromptSet,
    tokens: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    targets: list[str],
    baselines: list[str],
    position: int,
) -> None:
    """Refuse a position that a prompt lacks, and responses without a token or of the same tokens."""
    for number, (ids, *pair) in enumerate(zip(tokens, targets, baselines, strict=True), start=1):
        where = f"{asked.source}: prompt {number}"
        if not -len(ids) <= position < len(ids):
            what, expected = f"{where} has no such token", f"-{len(ids)} to {len(ids) - 1}"
            raise ConfigError("--position", what, got=position, expected=expected)
        encoded = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in pair]
        for option, text, known in zip(("--target", "--baseline"), pair, encoded, strict=True):
            if not known:
                what = f"the response that {option} gives has no token that the tokenizer knows"
                raise DataError(where, what, got=repr(text)[:60])
        if encoded[0] == encoded[1]:
            what, fix = "--target and --baseline are the same tokens", "Give two responses that differ."
            raise DataError(where, what, got=repr(pair[0])[:60], fix=fix)


def _check_layers(model: PreTrainedModel, wanted: list[int] | None) -> None:
    """Refuse layers without a router, and routers that cannot choose without one of their experts."""
    from hf_mote.mote.checks import check_against_model
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.routing.sites.routed_model import RoutedModel

    routed = RoutedModel(model)
    for layer in wanted or ():
        if layer not in routed.layers:
            raise UnknownNameError.of("--layers", layer, map(str, routed.layers))
    for site in routed.sites:
        if site.top_k >= site.num_experts and (wanted is None or site.layer in wanted):
            what, fix = f"layer {site.layer} chooses all of its experts", "Give --layers without it."
            raise ModelMismatchError("--layers", what, got=f"{site.top_k} of {site.num_experts}", fix=fix)
    without = [[layer, 0] for layer in wanted or routed.layers]
    check_against_model(MoTEConfig(suppress=without, suppress_mode="reroute"), routed)


def _plan(
    subject: Subject,
    asked: PromptSet,
    asking: Callable[..., CounterfactualRoutes],
    wanted: list[int] | None,
    candidates: int,
    batch_size: int,
) -> None:
    """Print what would be done, having tried the routes of one batch."""
    from hf_mote.commands.plan import plan_passes
    from hf_mote.routing.sites.discover import find_routers

    sites = [site for site in find_routers(subject.model) if wanted is None or site.layer in wanted]
    each = sum(site.top_k for site in sites)
    first: list[int] = []
    timed = 0
    while timed < batch_size and len(first) < len(sites):
        timed += sites[len(first)].top_k
        first.append(sites[len(first)].layer)
    number = len(asked.prompts)
    what = {
        "routes": f"up to {number * candidates * each:,}: {candidates} for each of {each} experts of one token, "
        f"in {len(sites)} layers",
        "runs": f"one forward of both responses for each route, {batch_size} together, and for each prompt as it is",
    }
    # The prompt as it is runs alone, and once more in a batch of the same size.
    before = 1 + (min(batch_size, timed) if batch_size > 1 else 0)
    times = number * (before + candidates * each) / (before + timed)
    plan_passes(
        subject,
        asked,
        partial(asking, layers=first),
        times,
        named=f"{timed} routes of the longest prompt, with the prompt as it is",
        what=what,
        result=5 * 8 * number * candidates * each,
    )


def _table(found: Rerouted) -> Table:
    from hf_mote.reports.routes import first_rows

    headings, rows = first_rows(found)
    there = sum(len(one.routes.routes) for one in found.prompts)
    table = Table(title=f"{len(rows)} of {there} other routes; change and preference in nats")
    for heading in headings:
        table.add_column(heading, justify="right")
    for cells in rows:
        table.add_row(*cells, style="bold" if cells[-1] == "yes" else None)
    return table


def _write(folder: Path, found: Rerouted, provenance: dict[str, str]) -> None:
    from hf_mote.reports.routes import routes_page, routes_verdict

    verdict, anything = routes_verdict(found)
    several = len(found.prompts) > 1
    holds, prompts = {}, []
    for number, one in enumerate(found.prompts, start=1):
        place = f"prompts/{number}" if several else "."
        one.routes.save_pretrained(folder / place)
        name = (Path(place) / one.routes.file_name).as_posix()
        holds[name] = f"all routes{f' of prompt {number}' if several else ''} (CounterfactualRoutes)"
        prompts.append(
            {
                "prompt": one.prompt,
                "target": one.target,
                "baseline": one.baseline,
                "position": one.routes.position,
                "token": one.pieces[one.routes.position],
                "preference": one.routes.score,
                "routes": len(one.routes.routes),
                "turning": [route._asdict() for route in one.routes.turning],
                "first": [route._asdict() for route in one.routes.routes[: found.top]],
                "file": name,
            }
        )
    figures = {"kind": "routes", "verdict": verdict, "found": anything, "prompts": prompts}
    page = lambda files: routes_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
