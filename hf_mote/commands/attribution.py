"""`hf-mote attribute`: which experts speak for one response rather than another, and a page to read it on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import BASELINE, TARGET, Pairing, Reading
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.bundles.results import Choosing, Writing
from hf_mote.commands.latent_maps import check_latent_maps, latent_maps
from hf_mote.commands.model import Organisms
from hf_mote.commands.run_files import PAGE, finish, rows_of, save_config
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, UnknownNameError, real

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.reports.attribution import Attribution
    from hf_mote.reports.tokens import RoutedText

__all__ = ["attribute_command"]

OUTPUT = Writing(Path("hf-mote-attribute"))
RESAMPLES = 999
LEAST_COMPLETED = 4
PLANNED = 3  # steps of growth of each mode that a plan reckons with
METHODS = ("attribution", "ablation", "optimize", "patching")
ONE_BY_ONE = ("ablation", "patching")  # methods that try one expert at a time, and take a shortlist
CORRUPTED = "corrupted"


@bundled
def attribute_command(
    context: typer.Context,
    *,
    model: o.Model,
    prompts: o.Prompts,
    pairing: Pairing,
    writing: Writing = OUTPUT,
    method: Annotated[
        str,
        typer.Option(
            help="attribution: gradient times weight, one pass; ablation: one expert taken out at a time; optimize: "
            "gates learnt for all experts together, which finds those that stand in for each other; patching: what "
            "one expert at a time adds for the prompt, put into the run of a corrupted prompt."
        ),
    ] = "attribution",
    corrupted_field: Annotated[
        str,
        typer.Option(
            help="With patching: field that holds the corrupted prompt, for which the target is less likely; of as "
            "many tokens as the prompt, unless --positions count from its end."
        ),
    ] = CORRUPTED,
    gain: Annotated[
        float, typer.Option(help="Where the derivative is taken; below 1 where the response is all but certain.")
    ] = 1.0,
    shortlist: Annotated[
        int | None,
        typer.Option(min=1, help="Ablate or patch only so many, the first by attribution; all by default."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Batches that optimize learns from, for each price and seed; 60 by default."),
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="With optimize: hold half of the prompts back, and let the set grow, in each mode of suppression, as "
            "long as the baseline response becomes likelier on these.",
        ),
    ] = False,
    choosing: Choosing,
    traced: o.Traced = 3,
    latents: o.Latents = None,
    resamples: o.Resamples = RESAMPLES,
    seed: o.Seed = 0,
    reading: Reading,
    templating: Templating,
    batch_size: o.BatchSize = 8,
    loading: Loading,
) -> None:
    """Find the experts that make a model prefer one response to another: rank them by effect, write a report."""
    work = writing.work()
    with reporting(kept=work.word):
        writing.check()
        if method not in METHODS:
            raise UnknownNameError.of("--method", method, METHODS)
        patching = method == "patching"
        if shortlist is not None and method not in ONE_BY_ONE:
            raise ConfigError("--shortlist", "is for the methods ablation and patching", got=f"--method {method}")
        if method in ONE_BY_ONE and gain != 1.0 and shortlist is None:
            what, fix = (
                f"says nothing to the method {method} without a shortlist",
                "Give --shortlist, or leave it out.",
            )
            raise ConfigError("--gain", what, got=gain, fix=fix)
        if corrupted_field != CORRUPTED and not patching:
            raise ConfigError("--corrupted-field", "is for the method patching", got=f"--method {method}")
        if method == "optimize" and (gain != 1.0 or resamples != RESAMPLES or reading.group_field is not None):
            given = "--gain" if gain != 1.0 else "--resamples" if resamples != RESAMPLES else "--group-field"
            raise ConfigError(given, "says nothing to the method optimize", fix="Leave it out.")
        if method != "optimize" and steps is not None:
            raise ConfigError("--steps", "is for the method optimize", got=f"--method {method}")
        if method != "optimize" and complete:
            raise ConfigError("--complete", "is for the method optimize", got=f"--method {method}")
        choosing.check(measured=patching)
        real("--gain", gain, above=0, most=1)
        shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed, **templating.settings()}
        loading.check(model)
        organisms = Organisms()
        asked = reading.prompts(prompts, organisms, seed=seed)
        groups = reading.groups(asked)
        targets, baselines = pairing.responses(asked)
        corrupted = asked.others(corrupted_field, "--corrupted-field") if patching else []
        if complete and len(asked.prompts) < LEAST_COMPLETED:
            needed = f"{LEAST_COMPLETED} or more, half of which are held back"
            raise ConfigError("--complete", "has too few prompts", got=len(asked.prompts), expected=needed)
        # From here on torch and transformers are needed.
        from hf_mote.generation.prompts import prompt_text
        from hf_mote.hub import public_name
        from hf_mote.ranking.causal.ablation import ablate_experts
        from hf_mote.ranking.causal.attribution import attribute_experts
        from hf_mote.ranking.causal.optimization import optimize_experts
        from hf_mote.ranking.causal.optimized import OptimizedRanking
        from hf_mote.ranking.causal.patching import patch_experts
        from hf_mote.reports.attribution import Attribution, attribution_verdict
        from hf_mote.reports.explorer import traced_experts
        from hf_mote.routing.sites.routed_model import RoutedModel

        maps = latent_maps(latents)
        check_numbers = partial(choosing.check_experts, shortlist=shortlist)
        subject = loading.subject(model, organisms, templating=templating, prompts=asked.prompts, fits=check_numbers)
        check_latent_maps(maps, RoutedModel(subject.model))
        check_numbers(subject.model)
        if writing.dry_run:
            _plan(subject, asked, targets, baselines, method, shortlist, steps, shared, complete=complete)
            return
        with work.of(subject.model) as part_of, writing.folder() as folder:
            say(f"attributing {len(asked.prompts)} prompts, {method}")
            chat = templating.chat(subject.tokenizer)

            def call(rank: Callable[..., ExpertRanking], **options: Any) -> ExpertRanking:
                return _call(rank, subject, asked, targets, baselines, **shared, **options)

            by_gradient = partial(call, attribute_experts, gain=gain, groups=groups, run_folder=part_of("attribution"))
            if method in ONE_BY_ONE:
                experts = by_gradient(resamples=0).top(shortlist) if shortlist is not None else None
                tried: dict[str, Any] = {"experts": experts, "groups": groups, "resamples": resamples}
                tried["run_folder"] = part_of(method)
                if patching:
                    texts = (asked.prompts, corrupted, targets, baselines)
                    asking = partial(patch_experts, subject.model, subject.tokenizer, *texts)
                    ranking = asking(positions=choosing.at, **shared, **tried)
                else:
                    ranking = call(ablate_experts, **tried)
            elif method == "optimize":
                learning: dict[str, Any] = {} if steps is None else {"steps": steps}
                # What is held back is seen neither by the gates nor by the set as it grows.
                number = _num_learnt(asked, complete)
                part = dataclasses.replace(asked, prompts=asked.prompts[:number])
                gates = partial(_call, optimize_experts, subject, part, targets[:number], baselines[:number])
                ranking = gates(run_folder=part_of(method), **shared, **learning)
                if complete and isinstance(ranking, OptimizedRanking):
                    options: dict[str, Any] = {name: value for name, value in shared.items() if name != "seed"}
                    options["held_back"] = 1 - number / len(asked.prompts)
                    growing = partial(_call, ranking.complete, subject, asked, targets, baselines, **options)
                    ranking = growing(run_folder=part_of("complete"))
            else:
                ranking = by_gradient(resamples=resamples)
            config = choosing.config(ranking, base_model=subject.name)
            if config is None and isinstance(ranking, OptimizedRanking) and ranking.chosen:
                config = ranking.to_config(base_model=public_name(subject.name))
            followed = traced_experts(ranking)
            found = Attribution(
                model=subject.name,
                ranking=ranking,
                prompts=asked.texts,
                targets=targets,
                baselines=baselines,
                preference=_preference(subject, asked, targets, baselines, batch_size, chat),
                top=choosing.number(len(ranking)),
                texts=_texts(subject, asked, targets, baselines, followed, traced, chat),
                traced=followed,
                config=None if config is None else config.to_dict(),
                latents=list(maps.values()),
                corrupted=[prompt_text(prompt) for prompt in corrupted],
            )
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "method": method}
            if maps:
                more["latents"] = ", ".join(maps)
            _write(folder, found, config, provenance_of(context, subject, seed, **more))
        tell(attribution_verdict(found)[0])
        tell(f"Report: {writing.output / PAGE}")


def _plan(
    subject: Subject,
    asked: PromptSet,
    targets: list[str],
    baselines: list[str],
    method: str,
    shortlist: int | None,
    steps: int | None,
    shared: dict[str, Any],
    *,
    complete: bool,
) -> None:
    """Print what would be done, having run one batch of it."""
    from hf_mote.commands.plan import Timed, Work, plan_passes
    from hf_mote.generation.asking import Chat
    from hf_mote.mote.config import CHOICES
    from hf_mote.ranking.causal.ablation import ablate_experts
    from hf_mote.ranking.causal.attribution import attribute_experts
    from hf_mote.ranking.causal.completion import GAINS, MOST_TRIED
    from hf_mote.ranking.causal.optimization import NUM_SEEDS, PENALTIES, STEPS
    from hf_mote.routing.sites.discover import find_routers

    sites = find_routers(subject.model)
    there = sum(site.num_experts for site in sites)
    number, size = len(asked.prompts), min(_num_learnt(asked, complete), shared["batch_size"])
    first = (asked.prompts[:size], targets[:size], baselines[:size])
    chat = Chat(subject.tokenizer, shared["system_prompt"], shared["chat_template_kwargs"])
    quiet = {**shared, "resamples": 0, "progress": False}
    batches = math.ceil(number / size)
    gradient = partial(attribute_experts, subject.model, subject.tokenizer, *first, **quiet)
    # Whatever the method, the untouched model's preference stands in the report.
    untouched = Timed.of("one batch of forwards", partial(_preference, subject, *_first(asked, first), size, chat))
    more = [Work(untouched, batches)]
    if method in ONE_BY_ONE:
        tried = there if shortlist is None else shortlist
        # An expert takes a pass without it, and the first one a pass with all besides.
        passes = batches * (tried + 1) / 2
        runs = f"{tried + 1:,} forwards of both responses to each prompt, one without each of {tried:,} experts"
        if method == "patching":
            # In each layer the updates of both prompts are read first. Experts that no token chose take no pass.
            passes = batches * (tried + 2 * len(sites)) / 2
            runs = (
                f"{2 * len(sites):,} forwards of both responses to each prompt, and up to {tried:,} more, one for "
                "each expert that one of its tokens chose"
            )
        one = [(sites[0].layer, 0)]
        once = partial(ablate_experts, subject.model, subject.tokenizer, *first, experts=one, **quiet)
        named = f"two forwards of {size} prompts"
        if shortlist is not None:
            more.append(Work(Timed.of("one batch of gradients", gradient), batches))
    else:
        once, passes, named = gradient, float(batches), f"one forward and backward of {size} prompts"
        runs = f"one forward and backward of both responses to each prompt, {size} together"
    if method == "optimize":
        passes = float(len(PENALTIES) * NUM_SEEDS * (STEPS if steps is None else steps))
        runs = f"up to {passes:,.0f} forwards and backwards of {size} prompts; it stops where gates settle"
        if complete:
            grown = PLANNED * len(CHOICES["suppress_mode"])
            runs += (
                f"; then {grown} steps, if each mode takes {PLANNED}, of {len(GAINS)} forwards and backwards of the "
                f"prompts not held back and up to {MOST_TRIED} forwards of all {number}"
            )
            # The steps take one of the two responses: half of what is timed.
            more += [Work(Timed.of("one batch of gradients", gradient), grown * len(GAINS) * batches / 4)]
            more += [Work(untouched, grown * MOST_TRIED * batches / 2)]
    what = {"method": method, "runs": runs}
    plan_passes(subject, asked, once, passes, named=named, what=what, result=5 * 8 * there, more=more, pictures=1)


def _num_learnt(asked: PromptSet, complete: bool) -> int:
    """Return how many of the prompts are not held back."""
    return (len(asked.prompts) + 1) // 2 if complete else len(asked.prompts)


def _first(asked: PromptSet, first: tuple[list[Any], list[str], list[str]]) -> tuple[PromptSet, list[str], list[str]]:
    prompts, targets, baselines = first
    return dataclasses.replace(asked, prompts=prompts), targets, baselines


def _call(
    rank: Callable[..., ExpertRanking],
    subject: Subject,
    asked: PromptSet,
    targets: list[str],
    baselines: list[str],
    **options: Any,
) -> ExpertRanking:
    return rank(subject.model, subject.tokenizer, asked.prompts, targets, baselines, **options)


def _preference(
    subject: Subject,
    asked: PromptSet,
    targets: list[str],
    baselines: list[str],
    batch_size: int,
    chat: Chat,
) -> list[float]:
    """Return log p(target) - log p(baseline) of each prompt in the untouched model, in nats."""
    from hf_mote.ranking.causal.preference import Preference

    preference = Preference(
        "attribute",
        subject.model,
        chat,
        asked.prompts,
        response=targets,
        baseline_response=baselines,
        batch_size=batch_size,
    )
    found: list[float] = preference.scores().tolist()
    return found


def _texts(
    subject: Subject,
    asked: PromptSet,
    targets: list[str],
    baselines: list[str],
    experts: list[tuple[int, int]],
    traced: int,
    chat: Chat,
) -> list[RoutedText]:
    from hf_mote.commands.token_routing import trace_texts

    chosen = asked.prompts[:traced]
    prompts, responses = [*chosen, *chosen], [*targets[:traced], *baselines[:traced]]
    labels = [TARGET] * len(chosen) + [BASELINE] * len(chosen)
    return trace_texts(subject.model, chat, prompts, responses, labels, experts) if chosen else []


def _write(folder: Path, found: Attribution, config: MoTEConfig | None, provenance: dict[str, str]) -> None:
    from hf_mote.plots import plot_expert_map
    from hf_mote.ranking.causal.optimized import OptimizedRanking
    from hf_mote.reports.attribution import attribution_page, attribution_verdict

    ranking = found.ranking
    ranking.save_pretrained(folder)
    plot_expert_map(
        ranking.matrix(),
        ranking.layers,
        title=f"{ranking.method}: what speaks for the target response",
        label="closed" if isinstance(ranking, OptimizedRanking) else "nats",
        marked={f"the first {found.top}": ranking.top(found.top)},
        path=folder / "expert_map.png",
    )
    holds = {
        ranking.file_name: f"all experts ranked by {ranking.method} (ExpertRanking)",
        "expert_map.png": "heat map of the ranking",
        **save_config(config, folder),
    }
    verdict, anything = attribution_verdict(found)
    rows = zip(found.prompts, found.preference, strict=True)
    figures = {
        "kind": "attribution",
        "verdict": verdict,
        "found": anything,
        "method": ranking.method,
        "experts": rows_of(ranking, 50),
        "prompts": [{"prompt": prompt, "preference": value} for prompt, value in rows],
    }
    page = lambda files: attribution_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
