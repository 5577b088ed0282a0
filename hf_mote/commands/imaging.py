"""`hf-mote ftri`: prompts -> responses -> classes -> maps -> ranking, and a page to read it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.judging import make_judge, target_of
from hf_mote.commands.output import check_output, writing_to
from hf_mote.commands.prompts import PromptSet, read_prompts
from hf_mote.commands.results import config_of, finish, rows_of, safe_name, save_config
from hf_mote.commands.running import provenance_of, reporting, say, tell
from hf_mote.commands.subject import Organisms, Subject, load_subject
from hf_mote.commands.tracing import chosen_texts, trace_texts
from hf_mote.errors import ConfigError, DataError, HFMoTEError, UnknownNameError
from hf_mote.ftri.imaging import ftri
from hf_mote.ftri.processes import place_among_processes
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.result import FTRIResult
from hf_mote.ftri.scopes import SCOPES, check_scope
from hf_mote.ftri.scores import SCORES
from hf_mote.ftri.stability import Stability
from hf_mote.mote.config import MoTEConfig
from hf_mote.pages.imaging import Imaging, imaging_page, imaging_verdict
from hf_mote.pages.rankings import unit_of
from hf_mote.pages.tokens import RoutedText
from hf_mote.plots import plot_expert_map

__all__ = ["ftri_command"]

MOST_PICTURES = 8  # classes that get one
STABILITY_DRAWS = 100


def ftri_command(
    context: typer.Context,
    model: o.Model,
    prompts: o.Prompts,
    judge: o.JudgeName = None,
    target: o.Target = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-ftri"),
    scope: Annotated[str, typer.Option(help=f"Tokens to count: {', '.join(SCOPES)}.")] = "prompt",
    thinking_tokens: Annotated[
        str | None, typer.Option(help="Tokens that open and close the thinking, as in '<think>,</think>'.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sample responses at this temperature; greedy by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often to ask each prompt, if responses are sampled.")] = 1,
    run_folder: Annotated[
        Path | None, typer.Option(help="Keep results there as they come; a run that was killed goes on from it.")
    ] = None,
    score: Annotated[
        list[str],
        typer.Option(help=f"Score to rank by: {', '.join(SCORES)}. Give several to compare; the first one counts."),
    ] = ["mean_difference"],  # noqa: B006 (typer copies it)
    suppress: o.Suppress = None,
    stimulate: o.Stimulate = None,
    mode: o.Mode = "drop",
    top: o.Top = None,
    traced: o.Traced = 3,
    resamples: o.Resamples = 999,
    seed: o.Seed = 0,
    limit: o.Limit = None,
    prompt_field: o.PromptField = None,
    class_field: o.ClassField = None,
    system_prompt: o.SystemPrompt = None,
    judge_model: o.JudgeModel = None,
    judge_url: o.JudgeURL = None,
    batch_size: o.BatchSize = 16,
    max_new_tokens: o.MaxNewTokens = 64,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    force: o.Force = False,
) -> None:
    """Find the experts that a class of responses goes to: image prompts, rank the experts, write a report."""
    with reporting():
        check_output(output, force=force)
        _check(score, scope, mode, suppress, stimulate)
        organisms = Organisms()
        asked = read_prompts(
            prompts, organisms, prompt_field=prompt_field, class_field=class_field, limit=limit, seed=seed
        )
        labels = make_judge(judge, asked, organisms, model=model, judge_model=judge_model, judge_url=judge_url)
        wanted = target_of(labels, target, asked)
        subject = load_subject(model, organisms, revision=revision, dtype=dtype, device=device)
        marks = _token_ids(subject, thinking_tokens)
        with writing_to(output, force=force) as folder:
            say(f"imaging {len(asked.prompts)} prompts")
            result = ftri(
                subject.model,
                subject.tokenizer,
                asked.prompts,
                labels,
                scope=scope,
                thinking_tokens=marks,
                repeats=repeats,
                seed=seed,
                run_folder=run_folder,
                generate_kwargs={} if temperature is None else {"do_sample": True, "temperature": temperature},
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt,
            )
            if place_among_processes(subject.model.device)[0] > 0:
                raise typer.Exit  # the first process writes
            say("ranking the experts")
            rankings, failure = _rankings(result, wanted, score, resamples, seed)
            first = next(iter(rankings.values()), None)
            number = min(top or suppress or stimulate or 5, result.counts[0].numel())
            config = None
            if first is not None:
                config = config_of(first, suppress=suppress, stimulate=stimulate, mode=mode, base_model=subject.name)
            found = Imaging(
                model=subject.name,
                result=result,
                target=wanted,
                rankings=rankings,
                top=number,
                stability=_stability(result, wanted, number, score[0], seed) if first is not None else None,
                texts=_texts(subject, asked, result, wanted, first, number, traced, system_prompt),
                resamples=resamples,
            )
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "judge": judge or "the organism's own"}
            _write(folder, found, config, provenance_of(context, subject, seed, **more))
        tell(imaging_verdict(found)[0])
        tell(f"Report: {output / 'report.html'}")
        if failure is not None:
            raise failure


def _check(score: list[str], scope: str, mode: str, suppress: int | None, stimulate: int | None) -> None:
    """Refuse what would be refused only after the model has run."""
    for name in score:
        if name not in SCORES:
            raise UnknownNameError.of("--score", name, SCORES)
    check_scope("--scope", scope)
    if suppress is not None and stimulate is not None:
        raise ConfigError("--suppress, --stimulate", "are both given", expected="one of the two, or neither")
    MoTEConfig(suppress_mode=mode)  # type: ignore[arg-type]


def _token_ids(subject: Subject, names: str | None) -> tuple[int, int] | None:
    """Return the ids of the two tokens that open and close the thinking."""
    if names is None:
        return None
    known = subject.tokenizer.get_vocab()
    parts = [part.strip() for part in names.split(",")]
    missing = [part for part in parts if part not in known]
    if len(parts) != 2 or missing:
        got = f"{names!r}, of which the tokenizer lacks {missing}" if missing else repr(names)
        raise ConfigError("--thinking-tokens", "not two tokens", got=got, expected="as in '<think>,</think>'")
    return known[parts[0]], known[parts[1]]


def _rankings(
    result: FTRIResult, target: str, scores: list[str], resamples: int, seed: int
) -> tuple[dict[str, ExpertRanking], HFMoTEError | None]:
    """Return a ranking for each score, or none and why: then there is nothing to compare, which is a finding, too."""
    try:
        return {name: result.rank(target, score=name, resamples=resamples, seed=seed) for name in scores}, None
    except (UnknownNameError, DataError) as error:
        return {}, error


def _stability(result: FTRIResult, target: str, n: int, score: str, seed: int) -> Stability | None:
    try:
        return result.stability(target, n, score=score, resamples=STABILITY_DRAWS, seed=seed)
    except DataError:  # a class of one prompt, of which nothing can be drawn anew
        return None


def _texts(
    subject: Subject,
    asked: PromptSet,
    result: FTRIResult,
    target: str,
    ranking: ExpertRanking | None,
    number: int,
    traced: int,
    system_prompt: str | None,
) -> list[RoutedText]:
    if ranking is None or not traced:
        return []
    say("tracing tokens")
    places = chosen_texts(result.classes, target, traced)
    # Where prompts were asked several times, a result has a row for each run.
    asked_at = range(len(asked.prompts)) if result.prompt_index is None else result.prompt_index.tolist()
    return trace_texts(
        subject,
        [asked.prompts[asked_at[index]] for index in places],
        [result.responses[index] for index in places],
        [result.classes[index] for index in places],
        ranking.top(number),
        system_prompt=system_prompt,
    )


def _write(folder: Path, found: Imaging, config: MoTEConfig | None, provenance: dict[str, str]) -> None:
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
            label=unit_of(found.ranking),
            marked={"first experts": found.ranking.top(found.top)},
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
    }
    finish(folder, figures, provenance, holds, lambda files: imaging_page(found, provenance=provenance, files=files))


def _figures(stability: Stability | None) -> dict[str, float] | None:
    if stability is None:
        return None
    return {"n": stability.n, "overlap": stability.overlap, "low": stability.low, "chance": stability.chance}
