"""`hf-mote ftri`: prompts -> responses -> classes -> maps -> ranking, and a report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Generating, Sampling, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Judging, Reading
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.bundles.results import Choosing, Writing
from hf_mote.commands.judge_specs import target_of
from hf_mote.commands.latent_maps import check_latent_maps, latent_maps
from hf_mote.commands.model import Organisms
from hf_mote.commands.names import SCORES
from hf_mote.commands.run_files import PAGE, finish, rows_of, safe_name, save_config
from hf_mote.commands.served import connect, routed_there, served_facts
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.commands.typed import without_method
from hf_mote.errors import ConfigError, DataError, HFMoTEError, UnknownNameError, real
from hf_mote.processes import launched_as, part
from hf_mote.ranking.imaging.scopes import SCOPES, check_scope

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.ranking.imaging.result import FTRIResult
    from hf_mote.reports.imaging import Imaging
    from hf_mote.reports.tokens import RoutedText
    from hf_mote.statistics.predictability import Predictability
    from hf_mote.statistics.stability import Stability

__all__ = ["ftri_command"]

OUTPUT = Writing(Path("hf-mote-ftri"))
MOST_PICTURES = 8  # classes that get a picture
STABILITY_DRAWS = 100


@bundled
def ftri_command(
    context: typer.Context,
    *,
    model: o.Model,
    prompts: o.Prompts,
    judging: Judging,
    sampling: Sampling,
    writing: Writing = OUTPUT,
    scope: Annotated[str, typer.Option(help=f"Tokens to count: {', '.join(SCOPES)}.")] = "prompt",
    thinking_tokens: Annotated[
        str | None,
        typer.Option(help="Tokens that open and close the thinking, as in '<think>,</think>'; none by default."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often to ask each prompt, if responses are sampled.")] = 1,
    score: Annotated[
        list[str],
        typer.Option(help=f"Score to rank by: {', '.join(SCORES)}. Give several to compare; the first one counts."),
    ] = ["mean_difference"],  # noqa: B006 (typer copies it)
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Divide each prompt's counts by its tokens, for mean_difference.")
    ] = False,
    choosing: Choosing,
    traced: o.Traced = 3,
    latents: o.Latents = None,
    resamples: o.Resamples = 999,
    confidence: Annotated[float, typer.Option(min=0.01, max=0.999, help="Coverage of the intervals.")] = 0.95,
    seed: o.Seed = 0,
    reading: Reading,
    class_field: o.ClassField = None,
    pair_field: o.PairField = None,
    templating: Templating,
    generating: Generating,
    loading: Loading,
    server: Annotated[
        str | None,
        typer.Option(
            help="Image through the server that `hf-mote serve MODEL --record N` runs there, such as "
            "http://127.0.0.1:8000; the model is not loaded here, and no tokens are shown. "
            "By default the model is loaded here."
        ),
    ] = None,
) -> None:
    """Find the experts that a class of responses is routed to: image prompts, rank the experts, write a report."""
    work = writing.work()
    with reporting(shares=True, kept=work.word):
        writing.check()
        _check(score, normalize, scope, thinking_tokens)
        real("--confidence", confidence, above=0, below=1)
        choosing.check()
        if writing.dry_run and server is not None:
            raise ConfigError("--dry-run", "needs a model that is loaded here", got=f"--server {server}")
        template_settings, sampled = templating.settings(), sampling.arguments()
        if server is None:
            loading.check(model)
        organisms = Organisms()
        asked = reading.prompts(prompts, organisms, seed=seed, class_field=class_field)
        pairs = None if pair_field is None else _each_run(asked.column(pair_field), repeats)
        groups = reading.groups(asked)
        groups = None if groups is None else _each_run(groups, repeats)
        labels = judging.make(asked, organisms, model=model)
        target = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.commands.plan import TimedJudge, plan_responses
        from hf_mote.ranking.imaging.pipeline import ftri
        from hf_mote.reports.explorer import traced_experts
        from hf_mote.reports.imaging import Imaging, imaging_verdict
        from hf_mote.routing.sites.discover import find_routers
        from hf_mote.routing.sites.routed_model import RoutedModel

        maps = latent_maps(latents)
        engine = None if server is None else connect(server)
        subject = (
            loading.subject(
                model, organisms, templating=templating, prompts=asked.prompts, fits=choosing.check_experts
            )
            if engine is None
            else loading.served(model, organisms, templating=templating)
        )
        routed = RoutedModel(subject.model) if engine is None else routed_there(subject, engine)
        check_latent_maps(maps, routed)
        choosing.check_experts(subject.model)
        shared: dict[str, Any] = {
            "scope": scope,
            "thinking_tokens": _token_ids(subject, thinking_tokens),
            "seed": seed,
            "batch_size": generating.batch_size,
            "generate_kwargs": sampled,
            **template_settings,
        }
        chat = templating.chat(subject.tokenizer)
        if writing.dry_run:
            timed = TimedJudge(labels)
            num_experts = sum(site.num_experts for site in find_routers(subject.model))
            plan_responses(
                subject,
                asked,
                chat,
                generating.decoding(seed, sampled),
                runs={"to image": repeats},
                result=8 * repeats * len(asked.prompts) * num_experts,
                judge=judging.named,
                left_out=[*timed.left_out, *(["following the tokens of texts"] if traced else [])],
                once=lambda some, longest: ftri(
                    subject.model,
                    subject.tokenizer,
                    some,
                    timed,
                    max_new_tokens=longest,
                    progress=False,
                    **shared,
                ),
                pictures=3,  # of each class, and of the ranking
            )
            return
        writes = launched_as()[0] == 0
        with (
            work.of(subject.model) if engine is None else nullcontext(lambda _: writing.run_folder) as part_of,
            writing.folder() if writes else nullcontext() as folder,
        ):
            say(f"imaging {len(asked.prompts)} prompts")
            result = ftri(
                subject.model if engine is None else engine,
                subject.tokenizer,
                asked.prompts,
                labels,
                repeats=repeats,
                max_new_tokens=generating.max_new_tokens,
                run_folder=part_of(""),
                **shared,
            )
            part()
            if folder is None:  # the first process writes
                return
            say("ranking the experts")
            rankings, failure = _rankings(
                result,
                target,
                score,
                normalize=normalize,
                paired=pairs or False,
                groups=groups,
                confidence=confidence,
                resamples=resamples,
                seed=seed,
            )
            first = next(iter(rankings.values()), None)
            number = choosing.number(result.counts[0].numel())
            config = None if first is None else choosing.config(first, base_model=subject.name)
            followed = [] if first is None else traced_experts(first)
            found = Imaging(
                model=subject.name,
                result=result,
                target=target,
                rankings=rankings,
                top=number,
                stability=None
                if first is None
                else _stability(result, target, number, score[0], normalize, groups, seed),
                texts=_texts(subject, asked, result, target, followed, traced if engine is None else 0, chat),
                failure=None if failure is None else without_method(str(failure)),
                traced=followed,
                alike=result.alike(followed),
                config=None if config is None else config.to_dict(),
                predicted=None if first is None else _predicted(result, target, groups, seed),
                latents=list(maps.values()),
            )
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "judge": judging.named}
            if maps:
                more["latents"] = ", ".join(maps)
            if engine is not None:
                more |= served_facts(engine)
            _write(folder, found, config, provenance_of(context, subject, seed, **more))
        tell(imaging_verdict(found)[0])
        if config is not None:
            tell("The config is a hypothesis until hf-mote evaluate measures it. hf-mote find does both.")
        tell(f"Report: {writing.output / PAGE}")
        if failure is not None:  # the verdict has named it
            raise typer.Exit(1)


def _each_run(keys: list[str], repeats: int) -> list[str]:
    """Return a key for each run, from one for each prompt."""
    return [key for key in keys for _ in range(repeats)]


def _check(score: list[str], normalize: bool, scope: str, thinking_tokens: str | None) -> None:
    """Refuse invalid options before the model runs."""
    for name in score:
        if name not in SCORES:
            raise UnknownNameError.of("--score", name, SCORES)
    if normalize and score != ["mean_difference"]:
        what = "divides counts by tokens, which every other score does by itself"
        raise ConfigError("--normalize", what, got=f"--score {' '.join(score)}", expected="mean_difference alone")
    check_scope("--scope", scope)
    marks = None if thinking_tokens is None else [part.strip() for part in thinking_tokens.split(",")]
    expected = "as in '<think>,</think>'"
    if marks is None and scope in ("thinking", "answer"):
        what = f"is missing: scope {scope!r} needs the tokens that open and close the thinking"
        raise ConfigError("--thinking-tokens", what, expected=expected)
    if marks is not None and (len(marks) != 2 or not all(marks)):
        raise ConfigError("--thinking-tokens", "must be two tokens", got=repr(thinking_tokens), expected=expected)


def _token_ids(subject: Subject, names: str | None) -> tuple[int, int] | None:
    """Return the ids of the two tokens that open and close the thinking."""
    if names is None:
        return None
    known = subject.tokenizer.get_vocab()
    parts = [part.strip() for part in names.split(",")]
    missing = [part for part in parts if part not in known]
    if len(parts) != 2 or missing:
        got = f"{names!r}, of which the tokenizer lacks {missing}" if missing else repr(names)
        raise ConfigError("--thinking-tokens", "must be two tokens", got=got, expected="as in '<think>,</think>'")
    return known[parts[0]], known[parts[1]]


def _rankings(
    result: FTRIResult, target: str, scores: list[str], **options: Any
) -> tuple[dict[str, ExpertRanking], HFMoTEError | None]:
    """Return a ranking for each score, or none and the error, if there are no classes to compare."""
    try:
        return {name: result.rank(target, score=name, **options) for name in scores}, None
    except (UnknownNameError, DataError) as error:
        return {}, error


def _stability(
    result: FTRIResult, target: str, n: int, score: str, normalize: bool, groups: list[str] | None, seed: int
) -> Stability | None:
    try:
        return result.stability(
            target, n, score=score, normalize=normalize, groups=groups, resamples=STABILITY_DRAWS, seed=seed
        )
    except DataError:  # a class of one prompt, which cannot be resampled
        return None


def _predicted(result: FTRIResult, target: str, groups: list[str] | None, seed: int) -> Predictability | None:
    """Return how well routing predicts the class; `None` for too few prompts."""
    from hf_mote.statistics.groups import checked_groups
    from hf_mote.statistics.predictability import predictability

    # Runs of one prompt form a group.
    keys = result.prompt_index.tolist() if result.prompt_index is not None and groups is None else groups
    numbers = checked_groups("ftri.groups", keys, len(result.classes))
    try:
        of_class = [label == target for label in result.classes]
        return predictability(result.counts.numpy(), of_class, groups=numbers, seed=seed)
    except DataError:
        return None


def _texts(
    subject: Subject,
    asked: PromptSet,
    result: FTRIResult,
    target: str,
    followed: list[tuple[int, int]],
    traced: int,
    chat: Chat,
) -> list[RoutedText]:
    if not followed or not traced:
        return []
    from hf_mote.commands.token_routing import chosen_texts, trace_texts

    say("tracing tokens")
    places = chosen_texts(result.classes, target, traced)
    # If prompts were repeated, a result has a row for each run.
    asked_at = range(len(asked.prompts)) if result.prompt_index is None else result.prompt_index.tolist()
    tokens = result.response_tokens
    return trace_texts(
        subject.model,
        chat,
        [asked.prompts[asked_at[index]] for index in places],
        # The generated tokens: tokenizing the text again would lose special tokens.
        [result.responses[index] if tokens is None else tokens[index] for index in places],
        [result.classes[index] for index in places],
        followed,
    )


def _write(folder: Path, found: Imaging, config: MoTEConfig | None, provenance: dict[str, str]) -> None:
    from hf_mote.plots import plot_expert_map
    from hf_mote.reports.imaging import imaging_page, imaging_verdict

    result = found.result
    result.save_pretrained(folder / "imaging")
    holds = {f"imaging/{result.file_name}": "responses, classes and one map for each prompt (FTRIResult)"}
    for index, (name, seen) in enumerate(result.maps.items()):
        label = safe_name(index, name)
        seen.save_pretrained(folder / "maps" / label)
        holds[f"maps/{label}/{seen.file_name}"] = f"mean map of class {name!r} (ActivationMap)"
        if index < MOST_PICTURES:
            title = f"class {name!r}: {result.classes.count(name)} prompts".replace("$", r"\$")
            picture = f"expert_map_{label}.png"
            plot_expert_map(seen.counts, seen.layers, title=title, label="tokens per prompt", path=folder / picture)
            holds[picture] = f"heat map of class {name!r}"
    for place, (score, ranking) in enumerate(found.rankings.items()):
        where = folder if place == 0 else folder / "rankings" / score
        ranking.save_pretrained(where)
        saved = (where / ranking.file_name).relative_to(folder).as_posix()
        holds[saved] = f"all experts ranked by {score} (ExpertRanking)"
    if found.ranking is not None:
        plot_expert_map(
            found.ranking.matrix(),
            found.ranking.layers,
            title=f"{found.target!r} against all others".replace("$", r"\$"),
            label=found.ranking.unit,
            marked={f"the first {found.top}": found.ranking.top(found.top)},
            path=folder / "expert_map.png",
        )
        holds["expert_map.png"] = "heat map of the ranking"
    holds |= save_config(config, folder)
    verdict, anything = imaging_verdict(found)
    figures = {
        "kind": "ftri",
        "verdict": verdict,
        "found": anything,
        "target": found.target,
        "scope": result.scope,
        "classes": result.class_sizes,
        "experts": {score: rows_of(ranking, 50) for score, ranking in found.rankings.items()},
        "stability": _figures(found.stability),
        "predictability": None if found.predicted is None else found.predicted._asdict(),
    }
    finish(folder, figures, provenance, holds, lambda files: imaging_page(found, provenance=provenance, files=files))


def _figures(stability: Stability | None) -> dict[str, float] | None:
    if stability is None:
        return None
    return {"n": stability.n, "overlap": stability.overlap, "low": stability.low, "chance": stability.chance}
