"""`hf-mote find`: from prompts to a proven config, or to the reason why there is none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Generating, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Judging, Reading
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.bundles.results import Writing
from hf_mote.commands.judge_specs import response_judge, target_of
from hf_mote.commands.model import Organisms
from hf_mote.commands.run_files import PAGE, REPORT, finish
from hf_mote.commands.session import provenance_of, reporting, say, tell

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.judges.judge import Judge
    from hf_mote.workflow.find import Found

__all__ = ["find_command"]

OUTPUT = Writing(Path("hf-mote-find"))


@bundled
def find_command(
    context: typer.Context,
    *,
    model: o.Model,
    prompts: o.Prompts,
    judging: Judging,
    unrelated: Annotated[
        str | None,
        typer.Option(help="Prompts whose answers should not change; same sources as PROMPTS. None by default."),
    ] = None,
    writing: Writing = OUTPUT,
    controls: o.Controls = 40,
    seed: o.Seed = 0,
    reading: Reading,
    templating: Templating,
    generating: Generating,
    loading: Loading,
) -> None:
    """Find the experts behind a class of responses, and write a config only if it is proven on other prompts."""
    work = writing.work()
    with reporting(kept=work.word):
        writing.check()
        template_settings = templating.settings()
        loading.check(model)
        organisms = Organisms()
        asked = reading.prompts(prompts, organisms, seed=seed)
        groups = reading.groups(asked)
        others = reading.prompts(unrelated, organisms, seed=seed).prompts if unrelated is not None else []
        labels = response_judge(judging.make(asked, organisms, model=model))
        target = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.workflow.find import find_experts

        subject = loading.subject(model, organisms, templating=templating, prompts=asked.prompts)
        if writing.dry_run:
            chat, decoding = templating.chat(subject.tokenizer), generating.decoding(seed)
            _plan(subject, asked, chat, decoding, labels, len(others), controls, judging.named)
            return
        with work.of(subject.model) as part_of, writing.folder() as folder:
            found = find_experts(
                subject.model,
                subject.tokenizer,
                asked.prompts,
                labels,
                target=target,
                groups=groups,
                unrelated=others,
                num_controls=controls,
                seed=seed,
                batch_size=generating.batch_size,
                max_new_tokens=generating.max_new_tokens,
                **template_settings,
                run_folder=part_of(""),
                announce=say,
            )
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "judge": judging.named}
            _write(folder, found, subject.name, provenance_of(context, subject, seed, **more))
        for note in found.notes:
            tell(f"Note: {note.removesuffix('.')}.")
        if found.predicted is not None:
            tell(f"Before any intervention: {found.predicted}.")
        for candidate in found.candidates:
            tell(f"  {candidate}")
        tell(found.verdict)
        if found.config is not None:
            tell(f"Config: {writing.output / 'config'}")
        tell(f"Report: {writing.output / PAGE}")
        tell(f"In the same folder: {'; '.join(_other_files(found))}.")


def _write(folder: Path, found: Found, model: str, provenance: dict[str, str]) -> None:
    from hf_mote.reports.find import find_page

    holds, places = {}, {}
    for name, ranking in found.rankings.items():
        places[name] = f"rankings/{name}"
        ranking.save_pretrained(folder / places[name])
        holds[f"{places[name]}/{ranking.file_name}"] = f"all experts, ranked by {name} (ExpertRanking)"
    if found.report is not None:
        found.report.save_pretrained(folder / "evaluation")
        holds[f"evaluation/{found.report.file_name}"] = "the best candidate, measured (EvaluationReport)"
        found.report.plot(path=folder / "effect.png")
        holds["effect.png"] = "the rate before and with the best candidate, with the controls"
    if found.config is not None:
        found.config.save_pretrained(folder / "config")
        holds[f"config/{found.config.file_name}"] = "the proven config, for apply_mote"
    page = lambda files: find_page(found, model=model, places=places, provenance=provenance, files=files)  # noqa: E731
    finish(folder, found.to_dict(), provenance, holds, page)


def _other_files(found: Found) -> list[str]:
    """Return the files in the folder other than the page, for the terminal."""
    of_sets = " and of every set that was tried" if found.candidates else ""
    files = [f"{REPORT}, with all responses of the untouched model{of_sets}"]
    if found.rankings:
        files.append(f"rankings/, with all experts by {' and '.join(found.rankings)}")
    if found.report is not None:
        files.append("evaluation/ and effect.png, with the measurement of the best candidate")
    return files


def _plan(
    subject: Subject,
    asked: PromptSet,
    chat: Chat,
    decoding: Decoding,
    labels: Judge,
    num_unrelated: int,
    controls: int,
    judge: str,
) -> None:
    """Print what would be done, after answering one batch and one forward and backward pass."""
    from hf_mote.commands.plan import Timed, TimedJudge, Work, plan_responses
    from hf_mote.evaluation.evaluate import evaluate_mote
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.causal.attribution import attribute_experts
    from hf_mote.routing.sites.discover import find_routers
    from hf_mote.workflow.work import find_work

    timed, number = TimedJudge(labels), len(asked.prompts)
    todo = find_work(number, num_unrelated, num_controls=controls, batch_size=decoding.batch_size)
    one = MoTEConfig.for_model(subject.model, suppress=[[find_routers(subject.model)[0].layer, 0]])
    templated: dict[str, Any] = {"system_prompt": chat.system_prompt, "chat_template_kwargs": chat.template_kwargs}
    more = []
    if todo.steps:
        longest = sorted(asked.prompts, key=lambda prompt: -len(str(prompt)))[: todo.learnt_on]
        words = ["one two three four five six seven eight"] * len(longest)
        others = ["eight seven six five four three two one"] * len(longest)
        gradient = partial(attribute_experts, subject.model, subject.tokenizer, longest, words, others, **templated)
        gradient = partial(gradient, batch_size=todo.learnt_on, resamples=0, progress=False)
        more = [Work(Timed.of(f"a step of gates on {todo.learnt_on} prompts", gradient, warm_up=gradient), todo.steps)]
    if todo.sets:
        use = "to image, and candidates and proof if half of the prompts show the behaviour"
    else:
        use = "to image, and too few to measure candidates"
    plan_responses(
        subject,
        asked,
        chat,
        decoding,
        runs={use: 1},
        others=[*todo.compared, *todo.sets * todo.tried, *todo.proof],
        judge=judge,
        left_out=[
            *timed.left_out,
            *(
                [
                    "sets in another mode and the complete set, if none of these is enough",
                    "the best set without each of its experts",
                    "more controls if these do not decide",
                ]
                if more
                else []
            ),
        ],
        once=lambda some, longest: evaluate_mote(
            subject.model,
            subject.tokenizer,
            one,
            some,
            timed,
            target="any",
            num_controls=0,
            batch_size=decoding.batch_size,
            max_new_tokens=longest,
            progress=False,
            **templated,
        ),
        each=2,  # untouched, and with the config
        more=more,
        pictures=1,
    )
