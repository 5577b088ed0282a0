"""`hf-mote evaluate`: does a config beat random controls, and what else does it change; with a page to read it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Generating, Sampling, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.evidence import Judging, Reading
from hf_mote.commands.bundles.loading import Loading, Serving
from hf_mote.commands.bundles.results import Writing
from hf_mote.commands.conversations import read_conversations
from hf_mote.commands.judge_specs import response_judge, target_of
from hf_mote.commands.model import Organisms
from hf_mote.commands.names import CONTROL_KINDS
from hf_mote.commands.run_files import PAGE, finish
from hf_mote.commands.served import connect, refuse_loading, routed_there, served_facts
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError, one_of

if TYPE_CHECKING:
    from hf_mote.evaluation.changes import Change
    from hf_mote.evaluation.conversations import Conversation
    from hf_mote.reports.evaluation import Evaluation
    from hf_mote.routing.sites.routed_model import RoutedModel
    from hf_mote.serving.client import ServerEngine

__all__ = ["evaluate_command", "read_config"]

OUTPUT = Writing(Path("hf-mote-evaluate"))
# Folders of what was measured beside.
AGAINST = "against"
STIMULATED = "stimulated"


@bundled
def evaluate_command(
    context: typer.Context,
    *,
    model: o.Model,
    config: Annotated[
        str,
        typer.Argument(
            help="Config to measure, of experts or latents: a folder, a file or a Hub id; with --profile left out."
        ),
    ],
    prompts: Annotated[
        str | None, typer.Argument(help="Prompts; with --profile it is the second of two arguments.")
    ] = None,
    judging: Judging,
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
    against: Annotated[
        str | None,
        typer.Option(help="A second config, to be measured on the same prompts with controls of its own."),
    ] = None,
    sae: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the SAE of a steering config, if not the one it names.")
    ] = None,
    opposite: Annotated[
        str | None,
        typer.Option(
            help="Prompts that do not show the behaviour: the same experts are stimulated on them, and both stand in "
            "one table. Same sources as PROMPTS."
        ),
    ] = None,
    preregister: Annotated[
        Path | None,
        typer.Option(
            help="File of a pre-registration. If there is none yet, it is written and nothing is measured; the same "
            "command then measures, if model, config, prompts, judge and settings are still those."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1.0,
            help="Largest share of the answers to --unrelated prompts whose change would not matter (0.1 by default).",
        ),
    ] = None,
    writing: Writing = OUTPUT,
    controls: o.Controls = 40,
    control_kind: Annotated[
        str | None,
        typer.Option(
            help="What controls are matched by: layer (for experts the default), or usage (for latents the default)."
        ),
    ] = None,
    strengths: Annotated[str | None, typer.Option(help="Further strengths, as in 0.25,0.5,0.75.")] = None,
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
        config, prompts = _asked_for(config, prompts, serving)
        if serving.server is not None:
            # The revision is the tokenizer's, too, and that is here.
            here = dataclasses.replace(loading, revision=None).options()
            refuse_loading({"--sae": sae, **here, "--dry-run": writing.dry_run, "--run-folder": writing.run_folder})
        writing.check()
        doses = o.numbers_in("--strengths", strengths, float) if strengths is not None else []
        if control_kind is not None:
            one_of("--control-kind", control_kind, CONTROL_KINDS)
        if margin is not None and unrelated is None:
            what = "is about the answers to --unrelated prompts, and none are given"
            raise ConfigError("--margin", what, got=f"{margin:g}", fix="Give --unrelated PROMPTS, or leave it out.")
        asking, sampled = templating.settings(), sampling.arguments()
        organisms = Organisms()
        read = partial(reading.prompts, organisms=organisms, seed=seed)
        asked = read(prompts)
        others = read(unrelated).prompts if unrelated is not None else []
        turned = read(opposite) if opposite is not None else None
        groups, turned_groups = (None if part is None else reading.groups(part) for part in (asked, turned))
        plain = read(texts).texts if texts is not None else []
        talks = read_conversations(conversations, limit=reading.limit, seed=seed) if conversations is not None else []
        labels = response_judge(judging.make(asked, organisms, model=model))
        wanted = target_of(labels, judging.target, asked)
        # From here on torch and transformers are needed.
        from hf_mote.commands.plan import TimedJudge, plan_responses
        from hf_mote.evaluation.both_ways import BothWays, stimulating
        from hf_mote.evaluation.changes import check_change
        from hf_mote.evaluation.evaluate import OFF_TARGET, evaluate_mote
        from hf_mote.evaluation.selectivity import MARGIN
        from hf_mote.mote.config import MoTEConfig
        from hf_mote.reports.evaluation import Evaluation
        from hf_mote.routing.sites.routed_model import RoutedModel

        engine = None if serving.server is None else connect(serving.server)
        known = None if engine is None or serving.profile is None else _known(engine, serving.profile)
        first = read_config(config, sae) if known is None else known
        changes = [first, *([] if against is None else [read_config(against, sae)])]
        of_latents = [not isinstance(change, MoTEConfig) for change in changes]
        if sae is not None and not any(of_latents):
            raise ConfigError("--sae", "belongs to a steering config, and none is given", fix="Leave it out.")
        subject = (
            loading.subject(model, organisms, any_model=all(of_latents), templating=templating, prompts=asked.prompts)
            if engine is None
            else loading.served(model, organisms, templating=templating)
        )
        routed = RoutedModel(subject.model) if engine is None else routed_there(subject, engine)
        if allow_other_weights:
            changes = [one.for_other_weights_of(routed) if isinstance(one, MoTEConfig) else one for one in changes]
        for change in changes:  # of both, before either is measured
            check_change(change, routed)
        notes = [one.on_other_weights for one in changes if isinstance(one, MoTEConfig) and one.on_other_weights]
        stimulated = None
        if turned is not None:
            experts = changes[0]
            if not isinstance(experts, MoTEConfig):
                fix = "Leave it out, or give a config of experts."
                raise ConfigError("--opposite", "stimulates experts, and the config is of latents", fix=fix)
            slots = {site.layer: site.top_k for site in routed.sites}
            stimulated = stimulating(experts, slots, stimulate_weight="max")  # as evaluate_both_ways
        shared: dict[str, Any] = {
            "seed": seed,
            "batch_size": generating.batch_size,
            "generate_kwargs": sampled,
            **asking,
        }
        if writing.dry_run:
            timed = TimedJudge(labels)
            asides = (2 + controls) * [min(len(others), OFF_TARGET)] if others else []
            whole = 2 * [len(others)] if len(others) > OFF_TARGET else []
            spoken = [sum(turn < len(talk.turns) for talk in talks) for turn in range(_most_turns(talks))]
            plan_responses(
                subject,
                asked,
                templating.chat(subject.tokenizer),
                generating.decoding(seed, sampled),
                runs={
                    "untouched": len(changes),
                    "with the config": len(changes),
                    "with random controls": controls * len(changes),
                    **({"at other strengths": len(doses) * len(changes)} if doses else {}),
                },
                others=[
                    *len(changes) * [*asides, *whole, *spoken, *spoken],
                    *([] if turned is None else (2 + controls) * [len(turned.prompts)]),
                ],
                judge=judging.named,
                left_out=[*timed.left_out, *(["the passes over --texts"] if plain else [])],
                # Untouched, and with the config.
                each=2,
                once=lambda some, longest: evaluate_mote(
                    subject.model,
                    subject.tokenizer,
                    changes[0],
                    some,
                    timed,
                    target="any",
                    num_controls=0,
                    max_new_tokens=longest,
                    progress=False,
                    **shared,
                ),
                pictures=1,
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
                "groups": groups,
                "opposite": [] if turned is None else turned.prompts,
                "opposite_groups": turned_groups,
                "texts": plain,
                "conversations": [dataclasses.asdict(talk) for talk in talks],
            }
            registered = _registered(preregister, routed, changes, asked.prompts, others, labels, wanted, settings)
            if registered is None:
                tell(f"Written: {preregister}. Nothing was measured; the same command does, if all is as it is now.")
                return
        measured = partial(
            evaluate_mote,
            subject.model if engine is None else engine,
            subject.tokenizer,
            target=wanted,
            num_controls=controls,
            control_kind=control_kind,  # type: ignore[arg-type]
            max_new_tokens=generating.max_new_tokens,
            **shared,
        )
        with (
            work.of(None if engine is not None else subject.model) as part_of,
            writing.folder() as folder,
        ):
            reports = []
            parts = zip((config, against), ("config", AGAINST), changes, strict=False)
            for name, part, change in parts:
                say(f"evaluating {name} on {len(asked.prompts)} prompts, with {controls} random controls")
                report = measured(
                    change,
                    asked.prompts,
                    labels,
                    unrelated=others,
                    texts=plain,
                    conversations=talks,
                    strengths=doses,
                    groups=groups,
                    margin=margin,
                    run_folder=part_of(part),
                )
                reports.append(dataclasses.replace(report, preregistration=registered))
            both = None
            if turned is not None and stimulated is not None:
                say(f"stimulating the same experts on {len(turned.prompts)} prompts")
                report = measured(
                    stimulated, turned.prompts, labels, groups=turned_groups, run_folder=part_of(STIMULATED)
                )
                both = BothWays(reports[0], dataclasses.replace(report, preregistration=registered))
            found = Evaluation(subject.name, reports[0], reports[1] if against is not None else None, both)
            more = {
                "config": config,
                **({} if against is None else {"against": against}),
                **({} if sae is None else {"SAE": sae}),
                "prompts": f"{asked.source} ({len(asked.prompts)})",
                "judge": judging.named,
                **({"config is used": "; ".join(notes)} if notes else {}),
                **({} if engine is None else served_facts(engine)),
            }
            _write(folder, found, changes, provenance_of(context, subject, seed, **more))
        tell(reports[0].verdict)
        for other in reports[1:]:
            tell(f"Against {against}: {other.verdict}")
        for test in reports[0].not_worse:
            tell(f"Unrelated answers: {test}.")
        if both is not None:
            tell(f"Stimulated on the opposite prompts: {both.stimulated.verdict}\n\n{both.table}\n")
        if registered is not None:
            tell(f"As registered before: {preregister}, {registered[:12]}")
        tell(f"Report: {writing.output / PAGE}")


def _asked_for(config: str, prompts: str | None, serving: Serving) -> tuple[str, str]:
    """Return the config and the prompts: with --profile the config is the server's, and one argument less."""
    serving.check("a CONFIG")
    profile = serving.profile
    if profile is not None and prompts is not None:
        expected = "MODEL PROMPTS --server URL --profile NAME"
        raise ConfigError("--profile", "stands in the place of CONFIG", got=f"CONFIG {config} too", expected=expected)
    if profile is not None:
        return profile, config
    if prompts is None:
        raise ConfigError("PROMPTS", "is missing", expected="MODEL CONFIG PROMPTS, or --profile in place of CONFIG")
    return config, prompts


def _known(engine: ServerEngine, profile: str) -> Change:
    known = engine.profiles
    if profile not in known:
        raise UnknownNameError.of("--profile", profile, known)
    return known[profile]


def _most_turns(talks: Sequence[Conversation]) -> int:
    return max((len(talk.turns) for talk in talks), default=0)


def read_config(name: str, sae: str | None = None) -> Change:
    """Return a config of experts, or one of latents with its SAE.

    Args:
        name (`str`): A folder, a file or a Hub id.
        sae (`str`, *optional*): Folder or Hub id of the SAE, instead of the one that a steering config names.

    Raises:
        [`FileFormatError`]: if it holds neither.
    """
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.sae.convert import load_sae
    from hf_mote.sae.steering import SteeringConfig

    def steering() -> Change:
        config = SteeringConfig.from_pretrained(name)
        return config.bind(None if sae is None else load_sae(sae).train(False))

    path = Path(name)
    if (path / SteeringConfig.file_name).is_file() or path.name == SteeringConfig.file_name:
        return steering()
    try:
        return MoTEConfig.from_pretrained(name)
    except HFMoTEError:
        if path.exists():
            raise
        try:  # a Hub repository may hold the one or the other
            return steering()
        except HFMoTEError:
            pass
        raise


def _registered(
    path: Path,
    routed: RoutedModel,
    changes: Sequence[Change],
    prompts: Sequence[Any],
    unrelated: Sequence[Any],
    judge: object,
    target: object,
    settings: dict[str, Any],
) -> str | None:
    """Check what is about to be measured against a pre-registration; write one and return `None` if there is none."""
    from hf_mote.evaluation.preregistration import Preregistration, preregister
    from hf_mote.mote.config import MoTEConfig

    if any(not isinstance(change, MoTEConfig) for change in changes):
        what = "is of the experts of a model; latents cannot be registered yet"
        raise ConfigError("--preregister", what, fix="Leave it out, or give configs of experts.")
    against = [change.to_dict() for change in changes[1:]]
    plan = preregister(
        model=routed.fingerprint,
        config=changes[0].to_dict(),
        prompts=prompts,
        judge=judge,
        target=str(target),
        unrelated=unrelated,
        **settings,
        **({"against": against[0]} if against else {}),
    )
    if not path.exists():
        plan.write(path)
        return None
    known = Preregistration.read(path)
    known.check(plan)
    return known.digest


def _write(
    folder: Path,
    found: Evaluation,
    changes: Sequence[Change],
    provenance: dict[str, str],
) -> None:
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.plots import EffectRow, plot_effect
    from hf_mote.reports.evaluation import evaluation_page, points_of
    from hf_mote.sae.steering import SteeringConfig

    report = found.report
    configs = [
        change if isinstance(change, MoTEConfig) else SteeringConfig.from_dict(change.to_dict()) for change in changes
    ]
    report.save_pretrained(folder)
    configs[0].save_pretrained(folder / "config")
    beside = {}
    if found.against is not None:
        found.against.save_pretrained(folder / AGAINST)
        configs[1].save_pretrained(folder / AGAINST / "config")
        beside = {
            f"{AGAINST}/{report.file_name}": "the same, of the other config",
            f"{AGAINST}/config/{configs[1].file_name}": f"the other config ({type(configs[1]).__name__})",
        }
    if found.both is not None:
        found.both.stimulated.save_pretrained(folder / STIMULATED)
        beside[f"{STIMULATED}/{report.file_name}"] = "the same, of the experts stimulated on the opposite prompts"
    rows = [
        EffectRow(
            point.label,
            point.rate,
            point.low or 0.0,
            1.0 if point.high is None else point.high,
            point.controls,
            point.n,
        )
        for point in points_of(report)
    ]
    target = report.target.replace("$", r"\$")
    plot_effect(rows, rate_name=f"responses of class {target!r}", path=folder / "effect.png")
    holds = {
        report.file_name: "everything measured, with all responses (EvaluationReport)",
        f"config/{configs[0].file_name}": f"the config that was measured ({type(configs[0]).__name__})",
        "effect.png": "the rate before and after, with the controls",
        **beside,
    }
    figures: dict[str, object] = {
        "kind": "evaluation",
        "verdict": report.verdict,
        "found": report.beats_controls(),
        "outcome": report.outcome(),
        "target": report.target,
        "before": report.before.rate,
        "after": report.after.rate,
        "controls": list(report.controls),
        "p_value": report.p_value,
        "labels_before": report.labels_before,
        "labels_after": report.labels_after,
    }
    if found.against is not None:
        other = found.against
        figures["against"] = {
            "verdict": other.verdict,
            "found": other.beats_controls(),
            "after": other.after.rate,
            "controls": list(other.controls),
            "p_value": other.p_value,
            "labels_after": other.labels_after,
        }
    if found.both is not None:
        figures["both_ways"] = [dict(zip(found.both.columns, row, strict=True)) for row in found.both.rows]
    page = lambda files: evaluation_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
