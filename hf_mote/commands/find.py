"""`hf-mote find`: from prompts to a config that is proven, or to the reason why there is none."""

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
from hf_mote.commands.run_files import finish
from hf_mote.commands.session import provenance_of, reporting, say, tell

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.judges.judge import Judge

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
        str | None, typer.Option(help="Prompts whose answers should stay; same sources as PROMPTS. None by default.")
    ] = None,
    writing: Writing = OUTPUT,
    controls: o.Controls = 40,
    seed: o.Seed = 0,
    reading: Reading,
    templating: Templating,
    generating: Generating,
    loading: Loading,
) -> None:
    """Find the experts behind a class of responses and prove it on other prompts; write a config only then."""
    work = writing.work()
    with reporting(kept=work.word):
        writing.check()
        asking = templating.settings()
        loading.check(model)
        organisms = Organisms()
        asked = reading.prompts(prompts, organisms, seed=seed)
        groups = reading.groups(asked)
        others = reading.prompts(unrelated, organisms, seed=seed).prompts if unrelated is not None else []
        labels = response_judge(judging.make(asked, organisms, model=model))
        wanted = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.workflow.find import find_experts

        subject = loading.subject(model, organisms, templating=templating, prompts=asked.prompts)
        if writing.dry_run:
            how = templating.chat(subject.tokenizer), generating.decoding(seed)
            _plan(subject, asked, *how, labels, len(others), controls, judging.named)
            return
        with work.of(subject.model) as part_of, writing.folder() as folder:
            found = find_experts(
                subject.model,
                subject.tokenizer,
                asked.prompts,
                labels,
                target=wanted,
                groups=groups,
                unrelated=others,
                num_controls=controls,
                seed=seed,
                batch_size=generating.batch_size,
                max_new_tokens=generating.max_new_tokens,
                **asking,
                run_folder=part_of(""),
                announce=say,
            )
            holds = {}
            for name, ranking in found.rankings.items():
                ranking.save_pretrained(folder / "rankings" / name)
                holds[f"rankings/{name}/{ranking.file_name}"] = f"all experts, ranked by {name} (ExpertRanking)"
            if found.report is not None:
                found.report.save_pretrained(folder / "evaluation")
                holds[f"evaluation/{found.report.file_name}"] = "the best candidate, measured (EvaluationReport)"
            if found.config is not None:
                found.config.save_pretrained(folder / "config")
                holds[f"config/{found.config.file_name}"] = "the proven config, for apply_mote"
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "judge": judging.named}
            finish(folder, found.to_dict(), provenance_of(context, subject, seed, **more), holds)
        for note in found.notes:
            tell(f"Note: {note.removesuffix('.')}.")
        if found.predicted is not None:
            tell(f"Beforehand: {found.predicted}.")
        for candidate in found.candidates:
            tell(f"  {candidate}")
        tell(found.verdict)
        tell(f"Config: {writing.output / 'config'}" if found.config is not None else f"Figures: {writing.output}")


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
    """Print what would be done, having answered one batch and gone forwards and backwards once."""
    from hf_mote.commands.plan import Timed, TimedJudge, Work, plan_responses
    from hf_mote.evaluation.evaluate import evaluate_mote
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.causal.attribution import attribute_experts
    from hf_mote.routing.sites.discover import find_routers
    from hf_mote.workflow.work import find_work

    timed, number = TimedJudge(labels), len(asked.prompts)
    todo = find_work(number, num_unrelated, num_controls=controls, batch_size=decoding.batch_size)
    one = MoTEConfig.for_model(subject.model, suppress=[[find_routers(subject.model)[0].layer, 0]])
    asking: dict[str, Any] = {"system_prompt": chat.system_prompt, "chat_template_kwargs": chat.template_kwargs}
    more = []
    if todo.steps:
        longest = sorted(asked.prompts, key=lambda prompt: -len(str(prompt)))[: todo.learnt_on]
        words = ["one two three four five six seven eight"] * len(longest)
        others = ["eight seven six five four three two one"] * len(longest)
        gradient = partial(attribute_experts, subject.model, subject.tokenizer, longest, words, others, **asking)
        gradient = partial(gradient, batch_size=todo.learnt_on, resamples=0, progress=False)
        more = [Work(Timed.of(f"a step of gates on {todo.learnt_on} prompts", gradient, warm_up=gradient), todo.steps)]
    half = "trials and proof if half of the prompts show the behaviour" if todo.sets else "too few for any trial"
    plan_responses(
        subject,
        asked,
        chat,
        decoding,
        runs={f"to image, and {half}": 1},
        others=[*todo.compared, *todo.sets * todo.tried, *todo.proof],
        judge=judge,
        left_out=[
            *timed.left_out,
            *(
                [
                    "sets in another mode and the complete set, if none of these is enough",
                    "a trial without each expert of the best set",
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
            **asking,
        ),
        each=2,  # untouched, and with the config
        more=more,
    )
