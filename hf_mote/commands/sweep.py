"""`hf-mote sweep`: the first experts of a ranking, by number and strength, each with random controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.judge_specs import make_judge, response_judge, target_of
from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.names import CONTROL_KINDS
from hf_mote.commands.prompts import read_prompts
from hf_mote.commands.run_files import PAGE, Work, check_output, finish, writing_to
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hf_mote.evaluation.sweep import Sweep

__all__ = ["sweep_command"]


def sweep_command(
    context: typer.Context,
    model: o.Model,
    ranking: Annotated[str, typer.Argument(help="Ranking: the folder that ftri or attribute wrote, or a Hub id.")],
    prompts: o.Prompts,
    experts: Annotated[str, typer.Option(help="Numbers of first experts to try.")] = "1,2,5,10",
    strengths: Annotated[str, typer.Option(help="Strengths to try with each number.")] = "1",
    stimulate: Annotated[bool, typer.Option("--stimulate", help="Stimulate instead of suppress.")] = False,
    mode: o.Mode = "drop",
    judge: o.JudgeName = None,
    target: o.Target = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-sweep"),
    controls: o.Controls = 60,
    control_kind: o.ControlKind = "layer",
    run_folder: o.RunFolder = None,
    seed: o.Seed = 0,
    limit: o.Limit = None,
    prompt_field: o.PromptField = None,
    group_field: o.GroupField = None,
    system_prompt: o.SystemPrompt = None,
    chat_template: o.ChatTemplate = None,
    template_arg: o.TemplateArgs = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    judge_model: o.JudgeModel = None,
    judge_url: o.JudgeURL = None,
    judge_allow_http: o.JudgeAllowHTTP = False,
    batch_size: o.BatchSize = 16,
    max_new_tokens: o.MaxNewTokens = 64,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    quantization: o.Quantization = None,
    attn_implementation: o.AttnImplementation = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_other_weights: o.AllowOtherWeights = False,
    dry_run: o.DryRun = False,
    force: o.Force = False,
) -> None:
    """Try a ranking: suppress 1, 2, 5, 10, ... of its first experts, at each strength, against random controls."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        check_output(output, force=force)
        work.check()
        numbers = [int(number) for number in o.numbers_in("--experts", experts, int)]
        doses = o.numbers_in("--strengths", strengths, float)
        if numbers[0] < 1 or doses[0] <= 0:
            got = f"--experts {experts} --strengths {strengths}"
            raise ConfigError("--experts, --strengths", "nothing to try", got=got, expected="numbers above 0")
        one_of("--control-kind", control_kind, CONTROL_KINDS)
        # From here on torch and transformers are needed.
        from hf_mote.commands.plan import TimedJudge, plan_responses
        from hf_mote.evaluation.evaluate import evaluate_settings
        from hf_mote.evaluation.sweep import settings_of, sweep_mote
        from hf_mote.generation.asking import Chat, Decoding
        from hf_mote.ranking.expert_ranking import ExpertRanking
        from hf_mote.reports.formats import quoted

        ranked = ExpertRanking.from_pretrained(ranking)
        if numbers[-1] > len(ranked):
            expected = f"1 to {len(ranked)}, which the ranking has"
            raise ConfigError("--experts", "must be a number of experts", got=experts, expected=expected)
        action = "stimulate" if stimulate else "suppress"
        # What is wrong with a setting shows before anything runs.
        configs = settings_of(ranked, numbers, doses, action=action, suppress_mode=mode)
        told, sampled = o.template_args(template_arg), o.sampling(temperature, top_p)
        organisms = Organisms()
        asked = read_prompts(prompts, organisms, prompt_field=prompt_field, limit=limit, seed=seed)
        groups = None if group_field is None else asked.column(group_field)
        labels = response_judge(
            make_judge(
                judge,
                asked,
                organisms,
                model=model,
                judge_model=judge_model,
                judge_url=judge_url,
                allow_http=judge_allow_http,
            )
        )
        wanted = target_of(labels, target, asked)
        subject = load_subject(
            model,
            organisms,
            revision=revision,
            dtype=dtype,
            device=device,
            quantization=quantization,
            attn_implementation=attn_implementation,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            ready=lambda tokenizer: Chat(tokenizer, system_prompt, told).encode(asked.prompts),
        )
        if dry_run:
            timed = TimedJudge(labels)
            plan_responses(
                subject,
                asked,
                Chat(subject.tokenizer, system_prompt, told),
                Decoding(max_new_tokens, sampled, batch_size, seed),
                runs={
                    "untouched": 1,
                    "with a setting": len(configs),
                    "with random controls": len(configs) * controls,
                },
                judge=judge or "the organism's own",
                left_out=timed.left_out,
                each=2,  # untouched, and with the setting
                once=lambda some, longest: evaluate_settings(
                    subject.model,
                    Chat(subject.tokenizer, system_prompt, told),
                    [next(iter(configs.values()))],
                    some,
                    timed,
                    Decoding(longest, sampled, batch_size, seed),
                    target="any",
                    num_controls=0,
                    progress=False,
                ),
                pictures=1,
            )
            return
        with work.of(subject.model) as part_of, writing_to(output, force=force) as folder:
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
                target=wanted,
                num_controls=controls,
                control_kind=control_kind,  # type: ignore[arg-type]
                seed=seed,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt,
                chat_template_kwargs=told,
                generate_kwargs=sampled,
                groups=groups,
                allow_other_weights=allow_other_weights,
                run_folder=part_of(""),
            )
            found = found._replace(model=subject.name, source=f"{ranked.method} for {quoted(ranked.target)}")
            more = {
                "ranking": ranking,
                "prompts": f"{asked.source} ({len(asked.prompts)})",
                "judge": judge or "the organism's own",
            }
            _write(folder, found, provenance_of(context, subject, seed, **more))
        tell(found.verdict)
        tell(f"Report: {output / PAGE}")


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
