"""`hf-mote evaluate`: does a config beat random controls, and what else does it change; with a page to read it on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_mote.commands import options as o
from hf_mote.commands.conversations import read_conversations
from hf_mote.commands.judge_specs import make_judge, response_judge, target_of
from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.names import CONTROL_KINDS
from hf_mote.commands.prompts import read_prompts
from hf_mote.commands.run_files import PAGE, check_output, finish, writing_to
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import one_of

if TYPE_CHECKING:
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.reports.evaluation import Evaluation

__all__ = ["evaluate_command"]


def evaluate_command(
    context: typer.Context,
    model: o.Model,
    config: Annotated[str, typer.Argument(help="Config to measure: a folder, a file or a Hub id.")],
    prompts: o.Prompts,
    judge: o.JudgeName = None,
    target: o.Target = None,
    unrelated: Annotated[
        str | None, typer.Option(help="Prompts whose answers should stay; same sources as PROMPTS.")
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="Plain texts for KL and perplexity; same sources as PROMPTS.")
    ] = None,
    conversations: Annotated[
        str | None,
        typer.Option(
            help="Conversations to answer before and after: a .jsonl or .json file of objects with turns (a list of "
            "texts) and perhaps question_id and category, as MT-Bench's question.jsonl."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-evaluate"),
    controls: o.Controls = 40,
    control_kind: o.ControlKind = "layer",
    strengths: Annotated[str | None, typer.Option(help="Further strengths, as in 0.25,0.5,0.75.")] = None,
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
    trust_remote_code: o.TrustRemoteCode = False,
    allow_other_weights: o.AllowOtherWeights = False,
    force: o.Force = False,
) -> None:
    """Measure a config: rates before and after, random controls, side effects, responses side by side."""
    with reporting():
        check_output(output, force=force)
        doses = o.numbers_in("--strengths", strengths, float) if strengths is not None else []
        one_of("--control-kind", control_kind, CONTROL_KINDS)
        told, sampled = o.template_args(template_arg), o.sampling(temperature, top_p)
        organisms = Organisms()
        read = partial(read_prompts, organisms=organisms, prompt_field=prompt_field, limit=limit, seed=seed)
        asked = read(prompts)
        others = read(unrelated).prompts if unrelated is not None else []
        plain = read(texts).texts if texts is not None else []
        talks = read_conversations(conversations, limit=limit, seed=seed) if conversations is not None else []
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
        # From here on torch and transformers are needed.
        from hf_mote.evaluation.evaluate import evaluate_mote
        from hf_mote.mote.patch import load_config
        from hf_mote.reports.evaluation import Evaluation

        chosen: MoTEConfig = load_config(config)
        subject = load_subject(
            model,
            organisms,
            revision=revision,
            dtype=dtype,
            device=device,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
        )
        if allow_other_weights:
            chosen = chosen.for_other_weights(subject.model)
        with writing_to(output, force=force) as folder:
            say(f"evaluating on {len(asked.prompts)} prompts, with {controls} random controls")
            report = evaluate_mote(
                subject.model,
                subject.tokenizer,
                chosen,
                asked.prompts,
                labels,
                target=wanted,
                unrelated=others,
                texts=plain,
                conversations=talks,
                num_controls=controls,
                control_kind=control_kind,  # type: ignore[arg-type]
                strengths=doses,
                seed=seed,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt,
                chat_template_kwargs=told,
                generate_kwargs=sampled,
                groups=None if group_field is None else asked.column(group_field),
            )
            found = Evaluation(subject.name, report)
            more = {
                "config": config,
                "prompts": f"{asked.source} ({len(asked.prompts)})",
                "judge": judge or "the organism's own",
                **({} if chosen.on_other_weights is None else {"config is used": chosen.on_other_weights}),
            }
            _write(folder, found, chosen, provenance_of(context, subject, seed, **more))
        tell(report.verdict)
        tell(f"Report: {output / PAGE}")


def _write(folder: Path, found: Evaluation, config: MoTEConfig, provenance: dict[str, str]) -> None:
    from hf_mote.plots import EffectRow, plot_effect
    from hf_mote.reports.evaluation import evaluation_page, points_of

    report = found.report
    report.save_pretrained(folder)
    config.save_pretrained(folder / "config")
    rows = [
        EffectRow(point.label, point.rate, point.low or 0.0, 1.0 if point.high is None else point.high, point.controls)
        for point in points_of(report)
    ]
    target = report.target.replace("$", r"\$")
    plot_effect(rows, rate_name=f"responses of class {target!r}", path=folder / "effect.png")
    holds = {
        report.file_name: "everything measured, with all responses (EvaluationReport)",
        f"config/{config.file_name}": "the config that was measured (MoTEConfig)",
        "effect.png": "the rate before and after, with the controls",
    }
    figures = {
        "kind": "evaluation",
        "verdict": report.verdict,
        "found": report.beats_controls(),
        "target": report.target,
        "before": report.before.rate,
        "after": report.after.rate,
        "controls": list(report.controls),
        "p_value": report.p_value,
        "labels_before": report.labels_before,
        "labels_after": report.labels_after,
    }
    page = lambda files: evaluation_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
