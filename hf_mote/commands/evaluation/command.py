"""The command `hf-mote evaluate`: its options, its steps and its messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Generating, Sampling, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Judging, Reading
from hf_mote.commands.bundles.loading import Loading, Serving
from hf_mote.commands.bundles.results import Writing
from hf_mote.commands.evaluation.configs import config_and_prompts, fitted, of_experts, read_changes, stimulated
from hf_mote.commands.evaluation.files import AGAINST, STIMULATED, write_evaluation
from hf_mote.commands.evaluation.material import read_material
from hf_mote.commands.evaluation.plan import plan_evaluation
from hf_mote.commands.evaluation.registration import registered_digest
from hf_mote.commands.judge_specs import response_judge, target_of
from hf_mote.commands.model import Organisms
from hf_mote.commands.names import CONTROL_KINDS
from hf_mote.commands.run_files import PAGE
from hf_mote.commands.served import connect, refuse_loading, routed_there, served_facts
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hf_mote.evaluation.changes import Change
    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.generation.chat import Prompt

__all__ = ["evaluate_command"]

OUTPUT = Writing(Path("hf-mote-evaluate"))


@bundled
def evaluate_command(
    context: typer.Context,
    *,
    model: o.Model,
    config: Annotated[
        str,
        typer.Argument(
            help="Config to measure, of experts or latents: a folder, a file or a Hub id; left out with --profile."
        ),
    ],
    prompts: Annotated[
        str | None, typer.Argument(help="Prompts; with --profile it is the second of two arguments.")
    ] = None,
    judging: Judging,
    unrelated: Annotated[
        str | None,
        typer.Option(help="Prompts whose answers should not change; same sources as PROMPTS. None by default."),
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="Plain texts for KL and perplexity; same sources as PROMPTS. None by default.")
    ] = None,
    conversations: Annotated[
        str | None,
        typer.Option(
            help="Conversations to answer before and after: a .jsonl or .json file of objects with turns (a list of "
            "texts) and optionally question_id and category, as MT-Bench's question.jsonl. None by default."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A second config, to be measured on the same prompts with controls of its own; none by default."
        ),
    ] = None,
    sae: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the SAE of a steering config; by default the one it names.")
    ] = None,
    opposite: Annotated[
        str | None,
        typer.Option(
            help="Prompts that do not show the behaviour: the same experts are stimulated on them, and one table "
            "shows both. Same sources as PROMPTS. None by default."
        ),
    ] = None,
    preregister: Annotated[
        Path | None,
        typer.Option(
            help="File of a pre-registration. If it does not exist, it is written and nothing is measured; the same "
            "command then measures, if model, config, prompts, judge and settings are unchanged. "
            "None by default."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1.0,
            help="Largest acceptable share of changed answers to --unrelated prompts (0.1 by default).",
        ),
    ] = None,
    writing: Writing = OUTPUT,
    controls: o.Controls = 40,
    control_kind: Annotated[
        str | None,
        typer.Option(
            help="How controls are matched: layer (the default for experts), or usage (the default for latents)."
        ),
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Further strengths, as in 0.25,0.5,0.75; none by default.")
    ] = None,
    seed: o.Seed = 0,
    reading: Reading,
    templating: Templating,
    sampling: Sampling,
    generating: Generating,
    loading: Loading,
    allow_other_weights: o.AllowOtherWeights = False,
    serving: Serving,
) -> None:
    """Measure a config: rates before and after, random controls, side effects, responses side by side.

    With --against two configs are compared on one behaviour, such as experts and latents. With --server the model runs
    there: `hf-mote evaluate MODEL PROMPTS --server URL --profile NAME`, or with a CONFIG that the server lacks.
    """
    work = writing.work()
    with reporting(kept=work.word):
        config, prompts = config_and_prompts(config, prompts, serving)
        if serving.server is not None:
            # The revision is also that of the tokenizer, which is loaded here.
            here = dataclasses.replace(loading, revision=None).options()
            refuse_loading({"--sae": sae, **here, "--dry-run": writing.dry_run, "--run-folder": writing.run_folder})
        writing.check()
        doses = o.numbers_in("--strengths", strengths, float) if strengths is not None else []
        if control_kind is not None:
            one_of("--control-kind", control_kind, CONTROL_KINDS)
        if margin is not None and unrelated is None:
            fix = "Give --unrelated PROMPTS, or leave it out."
            raise ConfigError("--margin", "needs --unrelated prompts", got=f"{margin:g}", fix=fix)
        template_settings, sampled = templating.settings(), sampling.arguments()
        if serving.server is None:
            loading.check(model)
        organisms = Organisms()
        material = read_material(
            reading,
            organisms,
            prompts=prompts,
            unrelated=unrelated,
            opposite=opposite,
            texts=texts,
            conversations=conversations,
            seed=seed,
        )
        asked, opposite_set = material.asked, material.opposite
        labels = response_judge(judging.make(asked, organisms, model=model))
        target = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.evaluation.both_ways import BothWays
        from hf_mote.evaluation.evaluate import evaluate_mote
        from hf_mote.evaluation.selectivity import MARGIN
        from hf_mote.reports.evaluation import Evaluation
        from hf_mote.routing.sites.routed_model import RoutedModel

        engine = None if serving.server is None else connect(serving.server)
        changes = read_changes(config, against, sae=sae, engine=engine, profile=serving.profile)
        only_latents = not of_experts(changes)
        subject = (
            loading.subject(model, organisms, any_model=only_latents, templating=templating, prompts=asked.prompts)
            if engine is None
            else loading.served(model, organisms, templating=templating)
        )
        routed = RoutedModel(subject.model) if engine is None else routed_there(subject, engine)
        # Both configs are checked before either is measured.
        changes = fitted(changes, routed, allow_other_weights=allow_other_weights)
        notes = [one.on_other_weights for one in of_experts(changes) if one.on_other_weights]
        opposite_config = None if opposite_set is None else stimulated(changes[0], routed)
        shared: dict[str, Any] = {
            "seed": seed,
            "batch_size": generating.batch_size,
            "generate_kwargs": sampled,
            **template_settings,
        }
        if writing.dry_run:
            plan_evaluation(
                subject,
                material,
                changes,
                labels,
                chat=templating.chat(subject.tokenizer),
                decoding=generating.decoding(seed, sampled),
                judge=judging.named,
                controls=controls,
                strengths=len(doses),
                shared=shared,
            )
            return
        registered = None
        if preregister is not None:
            settings: dict[str, Any] = {
                "num_controls": controls,
                "control_kind": control_kind,
                "strengths": doses,
                "margin": MARGIN if margin is None else margin,
                "max_new_tokens": generating.max_new_tokens,
                **shared,
            }
            registered = registered_digest(
                preregister, routed, changes, material, judge=labels, target=target, settings=settings
            )
            if registered is None:
                tell(f"Written: {preregister}. Nothing was measured. The same command, unchanged, will measure.")
                return
        with work.of(None if engine is not None else subject.model) as part_of, writing.folder() as folder:

            def measured(change: Change, part: str, on: Sequence[Prompt], **more: Any) -> EvaluationReport:
                report = evaluate_mote(
                    subject.model if engine is None else engine,
                    subject.tokenizer,
                    change,
                    on,
                    labels,
                    target=target,
                    num_controls=controls,
                    control_kind=control_kind,  # type: ignore[arg-type]
                    max_new_tokens=generating.max_new_tokens,
                    run_folder=part_of(part),
                    **shared,
                    **more,
                )
                return dataclasses.replace(report, preregistration=registered)

            reports = []
            for name, part, change in zip((config, against), ("config", AGAINST), changes, strict=False):
                say(f"evaluating {name} on {len(asked.prompts)} prompts, with {controls} random controls")
                more = material.arguments()
                reports.append(measured(change, part, asked.prompts, strengths=doses, margin=margin, **more))
            both = None
            if opposite_set is not None and opposite_config is not None:
                say(f"stimulating the same experts on {len(opposite_set.prompts)} prompts")
                report = measured(opposite_config, STIMULATED, opposite_set.prompts, groups=material.opposite_groups)
                both = BothWays(reports[0], report)
            found = Evaluation(subject.name, reports[0], reports[1] if against is not None else None, both)
            facts = {
                "config": config,
                **({} if against is None else {"against": against}),
                **({} if sae is None else {"SAE": sae}),
                "prompts": f"{asked.source} ({len(asked.prompts)})",
                "judge": judging.named,
                **({"config is used": "; ".join(notes)} if notes else {}),
                **({} if engine is None else served_facts(engine)),
            }
            write_evaluation(folder, found, changes, provenance_of(context, subject, seed, **facts))
        tell(reports[0].verdict)
        for other in reports[1:]:
            tell(f"Against {against}: {other.verdict}")
        for test in reports[0].not_worse:
            sentence = str(test)
            tell(f"{sentence[:1].upper()}{sentence[1:]}.")
        if both is not None:
            tell(f"Stimulated on the opposite prompts: {both.stimulated.verdict}\n\n{both.table}\n")
        if registered is not None:
            tell(f"Pre-registered: {preregister}, {registered[:12]}")
        tell(f"Report: {writing.output / PAGE}")
