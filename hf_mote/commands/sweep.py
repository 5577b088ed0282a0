"""`hf-mote sweep`: the first experts of a ranking, by number and strength, each with random controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Generating, Sampling, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Judging, Reading
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.bundles.results import Writing
from hf_mote.commands.judge_specs import response_judge, target_of
from hf_mote.commands.model import Organisms
from hf_mote.commands.names import CONTROL_KINDS
from hf_mote.commands.run_files import PAGE, finish
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hf_mote.evaluation.sweep import Sweep

__all__ = ["sweep_command"]

OUTPUT = Writing(Path("hf-mote-sweep"))


@bundled
def sweep_command(
    context: typer.Context,
    *,
    model: o.Model,
    ranking: Annotated[str, typer.Argument(help="Ranking: the folder that ftri or attribute wrote, or a Hub id.")],
    prompts: o.Prompts,
    experts: Annotated[str, typer.Option(help="Numbers of first experts to try.")] = "1,2,5,10",
    strengths: Annotated[str, typer.Option(help="Strengths to try with each number.")] = "1",
    stimulate: Annotated[bool, typer.Option("--stimulate", help="Stimulate instead of suppress.")] = False,
    mode: o.Mode = "drop",
    judging: Judging,
    writing: Writing = OUTPUT,
    controls: o.Controls = 60,
    control_kind: o.ControlKind = "layer",
    seed: o.Seed = 0,
    reading: Reading,
    templating: Templating,
    sampling: Sampling,
    generating: Generating,
    loading: Loading,
    allow_other_weights: o.AllowOtherWeights = False,
) -> None:
    """Try a ranking: suppress 1, 2, 5, 10, ... of its first experts, at each strength, against random controls."""
    work = writing.work()
    with reporting(kept=work.word):
        writing.check()
        numbers = [int(number) for number in o.numbers_in("--experts", experts, int)]
        doses = o.numbers_in("--strengths", strengths, float)
        if numbers[0] < 1 or doses[0] <= 0:
            got = f"--experts {experts} --strengths {strengths}"
            raise ConfigError("--experts, --strengths", "must be above 0", got=got, expected="numbers above 0")
        one_of("--control-kind", control_kind, CONTROL_KINDS)
        o.check_changes(None, None, mode)
        template_settings, sampled = templating.settings(), sampling.arguments()
        loading.check(model)
        organisms = Organisms()
        asked = reading.prompts(prompts, organisms, seed=seed)
        groups = reading.groups(asked)
        labels = response_judge(judging.make(asked, organisms, model=model))
        target = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.commands.plan import TimedJudge, plan_responses
        from hf_mote.evaluation.evaluate import evaluate_settings
        from hf_mote.evaluation.sweep import settings_of, sweep_mote
        from hf_mote.ranking.expert_ranking import ExpertRanking
        from hf_mote.reports.formats import quoted

        ranked = ExpertRanking.from_pretrained(ranking)
        if numbers[-1] > len(ranked):
            expected = f"1 to {len(ranked)}, the number in the ranking"
            raise ConfigError("--experts", "must be a number of experts", got=experts, expected=expected)
        action = "stimulate" if stimulate else "suppress"
        # Invalid settings are refused before anything runs.
        configs = settings_of(ranked, numbers, doses, action=action, suppress_mode=mode)
        subject = loading.subject(model, organisms, templating=templating, prompts=asked.prompts)
        if writing.dry_run:
            timed, chat = TimedJudge(labels), templating.chat(subject.tokenizer)
            decoding = generating.decoding(seed, sampled)
            plan_responses(
                subject,
                asked,
                chat,
                decoding,
                runs={
                    "untouched": 1,
                    "with a setting": len(configs),
                    "with random controls": len(configs) * controls,
                },
                judge=judging.named,
                left_out=timed.left_out,
                each=2,  # untouched, and with the setting
                once=lambda some, longest: evaluate_settings(
                    subject.model,
                    chat,
                    [next(iter(configs.values()))],
                    some,
                    timed,
                    dataclasses.replace(decoding, max_new_tokens=longest),
                    target="any",
                    num_controls=0,
                    progress=False,
                ),
                pictures=1,
            )
            return
        with work.of(subject.model) as part_of, writing.folder() as folder:
            say(f"{len(configs)} settings on {len(asked.prompts)} prompts, with {controls} random controls")
            found = sweep_mote(
                subject.model,
                subject.tokenizer,
                ranked,
                asked.prompts,
                labels,
                num_experts=numbers,
                strengths=doses,
                action=action,  # type: ignore[arg-type]
                suppress_mode=mode,  # type: ignore[arg-type]
                target=target,
                num_controls=controls,
                control_kind=control_kind,  # type: ignore[arg-type]
                seed=seed,
                batch_size=generating.batch_size,
                max_new_tokens=generating.max_new_tokens,
                generate_kwargs=sampled,
                **template_settings,
                groups=groups,
                allow_other_weights=allow_other_weights,
                run_folder=part_of(""),
            )
            found = found._replace(model=subject.name, source=f"{ranked.method} for {quoted(ranked.target)}")
            more = {
                "ranking": ranking,
                "prompts": f"{asked.source} ({len(asked.prompts)})",
                "judge": judging.named,
            }
            _write(folder, found, provenance_of(context, subject, seed, **more))
        tell(found.verdict)
        tell(f"Report: {writing.output / PAGE}")


def _write(folder: Path, found: Sweep, provenance: dict[str, str]) -> None:
    from hf_mote.plots import EffectRow, plot_dose
    from hf_mote.reports.sweep import curves_of, sweep_page

    holds = {}
    for setting in found.settings:
        place = f"settings/first_{setting.num_experts}_at_{setting.strength:g}"
        setting.report.save_pretrained(folder / place)
        holds[f"{place}/{setting.report.file_name}"] = f"{setting}: everything measured (EvaluationReport)"
    dose_name, curves = curves_of(found)
    panels = {
        title: [
            EffectRow(label, s.report.after.rate, s.report.after.low, s.report.after.high, s.report.controls)
            for label, s in settings
        ]
        for title, settings in curves.items()
    }
    first = found.settings[0].report
    target = first.target.replace("$", r"\$")
    plot_dose(
        panels,
        rate_name=f"responses of class {target!r}",
        dose_name=dose_name,
        before=first.before.rate,
        path=folder / "sweep.png",
    )
    holds["sweep.png"] = "the rate with each setting, with the controls"
    figures = {"kind": "sweep", "found": bool(found.beating), **found.to_dict()}
    page = lambda files: sweep_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
