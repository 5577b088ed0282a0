"""`hf-mote demo`: all steps on a trained model: image, rank by two methods, suppress, stimulate, control, report.

Everything printed and written is measured in the run. The experts come from the rankings alone; the organism's ground
truth only marks which of them are the planted ones. Attribution compares the model's own response, which shows the
behaviour, with the true answer, which comes with the organism and a user would have to write.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hf_mote.commands import options as o
from hf_mote.commands.session import reporting, say, tell
from hf_mote.commands.verbosity import settle_progress
from hf_mote.errors import DataError
from hf_mote.folders import check_folder, replacing_folder
from hf_mote.reports.markup import visible

if TYPE_CHECKING:
    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.organisms.organism import Organism
    from hf_mote.organisms.recipes import Recipe
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.ranking.imaging.result import FTRIResult
    from hf_mote.reports.markup import Html
    from hf_mote.reports.tokens import RoutedText
    from hf_mote.routing.sites.site import RouterSite
    from hf_mote.statistics.rates import Rate

__all__ = ["DemoResult", "MethodResult", "demo", "run_demo"]

NUM_IMAGED = 48  # prompts of each kind that the experts are found with
NUM_TESTED = 60  # held-out prompts of each kind that the effect is measured on
NUM_CONTROLS = 20
NUM_REMOVED = 6  # first experts of each ranking that are removed one at a time
NUM_REMOVED_PROMPTS = 16  # prompts that they are removed on
NUM_TRACED = 3  # texts of each class whose tokens are traced


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """The effect of the experts of one ranking.

    Attributes:
        ranking (`ExpertRanking`): The ranking.
        report (`EvaluationReport`): The effect of suppressing its best experts on held-out sensitive prompts.
        stimulated (`Rate`): The behaviour on held-out neutral prompts with the same experts stimulated by the recipe's
            settings; in each layer at most as many as a token has slots.
        planted_found (`int`): How many of the suppressed experts are planted ones.
    """

    ranking: ExpertRanking
    report: EvaluationReport
    stimulated: Rate
    planted_found: int

    @property
    def experts(self) -> list[list[int]]:
        """The suppressed experts, `[layer, expert]`, best first."""
        return [list(pair) for pair in self.ranking.top(len(self.report.config["suppress"]))]

    @property
    def beats_controls(self) -> bool:
        """Whether suppressing them beats random experts, by the report's verdict."""
        return self.report.beats_controls()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report file."""
        unchanged = self.report.unrelated_unchanged
        return {
            "experts": self.experts,
            "planted_found": self.planted_found,
            "after": self.report.after.rate,
            "random_mean": fmean(self.report.controls),
            "random_min": min(self.report.controls),
            "unrelated_unchanged": unchanged.rate if unchanged is not None else None,
            "stimulated": self.stimulated.rate,
            "beats_controls": self.beats_controls,
            "verdict": self.report.verdict,
        }


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The measurements of the demo."""

    organism: Organism
    imaged: FTRIResult
    methods: dict[str, MethodResult]
    neutral_before: Rate
    removed: ExpertRanking
    traced: list[tuple[int, int]]
    texts: list[RoutedText]
    seed: int
    seconds: float

    @property
    def recipe(self) -> Recipe:
        """The recipe of the organism, with the words for its behaviour."""
        from hf_mote.organisms.recipes import RECIPES

        return RECIPES[self.organism.facts["name"]]

    @property
    def before(self) -> Rate:
        """The behaviour on held-out sensitive prompts in the untouched model."""
        return next(iter(self.methods.values())).report.before

    @property
    def best(self) -> str:
        """The method whose experts lower the rate most, by coherent responses alone.

        A method that beats its controls comes before one that does not, and one that breaks the text comes last.
        """

        def place(name: str) -> tuple[bool, bool, float]:
            method = self.methods[name]
            return not method.beats_controls, method.report.breaks_text, method.report.coherent_effect

        return min(self.methods, key=place)

    @property
    def verdict(self) -> str:
        """The verdict on the best method's experts; if they do not beat their controls, it says that none do."""
        best = self.methods[self.best]
        if best.beats_controls:
            return best.report.verdict
        return f"No ranking's experts beat their controls. Those of {self.best}: {best.report.verdict}"

    @property
    def num_experts(self) -> int:
        """Routed experts of the model."""
        return len(next(iter(self.methods.values())).ranking)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report file."""
        return {
            "organism": self.organism.name,
            "seed": self.seed,
            "experts_total": self.num_experts,
            "planted": [list(pair) for pair in self.organism.planted],
            "target": self.organism.judge.target,
            "before": self.before.rate,
            "neutral_before": self.neutral_before.rate,
            "seconds": self.seconds,
            "verdict": self.verdict,
            "methods": {name: method.to_dict() for name, method in self.methods.items()},
        }


def run_demo(
    output: Path, *, seed: int = 0, organism: str = "refusal", announce: Callable[[str], None] | None = None
) -> DemoResult:
    """Run the demo and write its folder.

    Args:
        output (`Path`): The folder; made if it does not exist.
        seed (`int`, *optional*, defaults to 0): Seed of the prompts drawn and of the random controls.
        organism (`str`, *optional*, defaults to `"refusal"`): A name from `list_organisms`, or the folder of an
            organism that was built.
        announce (`Callable[[str], None]`, *optional*): Called with a message at each step.

    Returns:
        [`DemoResult`].
    """
    from hf_mote.commands.token_routing import chosen_texts, trace_texts
    from hf_mote.evaluation.evaluate import evaluate_mote
    from hf_mote.files import write_json
    from hf_mote.generation.asking import Chat
    from hf_mote.organisms.organism import load_organism
    from hf_mote.organisms.recipes import RECIPES
    from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts, num_suppressed, rank_experts
    from hf_mote.reports.explorer import traced_experts
    from hf_mote.routing.sites.discover import find_routers

    say = announce if announce is not None else _silent
    began = time.perf_counter()
    say(
        f"the demo images {2 * NUM_IMAGED} prompts of a small model, ranks its experts by two methods, and suppresses "
        f"and stimulates the first ones on {2 * NUM_TESTED} others: about half a minute on one processor core"
    )
    say("loading the organism")
    subject = load_organism(organism)
    model, tokenizer, judge = subject.model, subject.tokenizer, subject.judge
    stimulation = RECIPES[subject.facts["name"]].stimulation
    train, test = draw_prompts(subject, seed=seed, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    options: dict[str, Any] = {"batch_size": NUM_TESTED, "max_new_tokens": MAX_NEW_TOKENS}

    say(f"imaging and attributing {2 * NUM_IMAGED} prompts (fTRI, gradient x routing weight)")
    imaged, rankings = rank_experts(subject, train, seed=seed, batch_size=NUM_TESTED, progress=True)
    num = num_suppressed(rankings["ftri"])
    methods = {}
    sites = find_routers(model)
    neutral_before = None
    for name, ranking in rankings.items():
        say(f"suppressing and stimulating the top {num} of {len(ranking)} by {name}, with {NUM_CONTROLS} controls")
        shared = {"seed": seed, **options}
        stimulated = evaluate_mote(
            model,
            tokenizer,
            _stimulating(ranking, num, sites, stimulation),
            test["neutral"],
            judge,
            num_controls=0,
            **shared,
        )
        neutral_before = stimulated.before
        methods[name] = MethodResult(
            ranking=ranking,
            report=evaluate_mote(
                model,
                tokenizer,
                ranking.to_config(suppress=num),
                test["sensitive"],
                judge,
                unrelated=[*test["neutral"], *test["unrelated"]],
                num_controls=NUM_CONTROLS,
                **shared,
            ),
            stimulated=stimulated.after,
            planted_found=len(set(ranking.top(num)) & set(subject.planted)),
        )
    if neutral_before is None:
        raise DataError("demo", "no ranking method ran")
    say("removing the first experts one at a time, and tracing their tokens")
    removed = _removed(subject, imaged, rankings)
    traced = traced_experts(rankings["ftri"])
    places = chosen_texts(imaged.classes, judge.target, NUM_TRACED)
    responses = imaged.response_tokens or imaged.responses
    texts = trace_texts(
        model,
        Chat(tokenizer),
        [imaged.prompts[index] for index in places],
        [responses[index] for index in places],
        [imaged.classes[index] for index in places],
        traced,
    )
    seconds = time.perf_counter() - began
    result = DemoResult(subject, imaged, methods, neutral_before, removed, traced, texts, seed, seconds)
    say(f"writing {output}")
    with replacing_folder(output, f"--output {output}", lambda _: (), keep=True) as folder:
        _write(result, folder, num)
        result = dataclasses.replace(result, seconds=time.perf_counter() - began)
        write_json(folder / "report.json", result.to_dict())
    return result


def _removed(subject: Organism, imaged: FTRIResult, rankings: Mapping[str, ExpertRanking]) -> ExpertRanking:
    """Return the effect of removing each of the first experts alone."""
    from hf_mote.organisms.scoring import shown_in
    from hf_mote.ranking.causal.ablation import ablate_experts

    shown = shown_in(subject, imaged)
    first = dict.fromkeys(pair for ranking in rankings.values() for pair in ranking.top(NUM_REMOVED))
    return ablate_experts(
        subject.model,
        subject.tokenizer,
        shown.prompts[:NUM_REMOVED_PROMPTS],
        shown.responses[:NUM_REMOVED_PROMPTS],
        shown.baseline_responses[:NUM_REMOVED_PROMPTS],
        experts=list(first),
        batch_size=NUM_REMOVED_PROMPTS,
        resamples=99,
    )


def _stimulating(
    ranking: ExpertRanking, num: int, sites: Sequence[RouterSite], fields: Mapping[str, Any]
) -> MoTEConfig:
    """Return the config that stimulates the best experts, in each layer at most as many as a token has slots there."""
    slots = {site.layer: site.top_k for site in sites}
    kept = []
    for layer, expert in ranking.top(num):
        if slots[layer]:
            slots[layer] -= 1
            kept.append([layer, expert])
    return dataclasses.replace(ranking.to_config(stimulate=num, **fields), stimulate=sorted(kept))


def _write(result: DemoResult, output: Path, num: int) -> None:
    from hf_mote.plots import EffectRow, plot_effect, plot_expert_map
    from hf_mote.reports.page import write_page

    best, before, target = result.methods[result.best], result.before, result.organism.judge.target
    measured = {
        f"{target}_before": before.rate,
        f"{target}_after": best.report.after.rate,
        "random_controls_mean": fmean(best.report.controls),
        "organism": result.organism.name,
        "seed": result.seed,
    }
    config = best.ranking.to_config(suppress=num)
    dataclasses.replace(config, provenance={**config.provenance, **measured}).save_pretrained(output)
    result.imaged.save_pretrained(output / "imaging")
    for name, activation_map in result.imaged.maps.items():
        activation_map.save_pretrained(output / "maps" / name)
    noun, rest = result.recipe.noun, result.recipe.rest
    titles = {
        "ftri": (f"fTRI: {noun} minus {rest}, mean over prompts", "tokens per prompt"),
        "attribution": (f"gradient x routing weight: experts in favour of {noun}", "nats"),
    }
    planted = {"planted": result.organism.planted} if result.organism.planted else {}
    for name, method in result.methods.items():
        method.ranking.save_pretrained(output / name)
        method.report.save_pretrained(output / name / "evaluation")
        title, unit = titles[name]
        plot_expert_map(
            method.ranking.matrix(),
            method.ranking.layers,
            title=title,
            label=unit,
            marked={**planted, "first, suppressed": method.ranking.top(num)},
            path=output / f"expert_map_{name}.png",
        )
    rows = [EffectRow("untouched", before.rate, before.low, before.high, n=before.n)]
    for name, method in result.methods.items():
        after = method.report.after
        label = f"first {num} by {name}"
        rows.append(EffectRow(label, after.rate, after.low, after.high, method.report.controls, after.n))
    plot_effect(
        rows,
        rate_name=f"{noun} on held-out sensitive prompts",
        title=f"{num} of {result.num_experts} experts suppressed",
        path=output / "effect.png",
    )
    write_page(output / "report.html", _page(result, output))


def _page(result: DemoResult, output: Path) -> Html:
    from importlib.metadata import version

    from hf_mote.reports.demo import Demonstration, demo_page

    best, organism = result.methods[result.best], result.organism
    methods = {result.best: best, **result.methods}  # the best one first
    shown = Demonstration(
        model=f"organism:{organism.name}",
        target=organism.judge.target,
        imaged=result.imaged,
        rankings={name: method.ranking for name, method in methods.items()},
        reports={name: method.report for name, method in methods.items()},
        stimulated={name: method.stimulated for name, method in methods.items()},
        neutral_before=result.neutral_before,
        planted=organism.planted,
        traced=result.traced,
        texts=result.texts,
        removed=result.removed,
        verdict=result.verdict,
        found=best.beats_controls,
    )
    how = {"model": shown.model, "seed": str(result.seed), "transformers": version("transformers")}
    holds = {
        "mote_config.json": f"the config of the first experts by {result.best}",
        "imaging": "responses, classes and one map for each prompt (FTRIResult)",
        "maps": "the mean map of each class (ActivationMap)",
        **dict.fromkeys(methods, "all experts ranked (ExpertRanking), and the evaluation of the first"),
    }
    pictures = sorted(path.name for path in output.glob("*.png"))
    return demo_page(shown, provenance=how, files={**holds, **dict.fromkeys(pictures, "a picture of this page")})


def _silent(_: str) -> None:
    pass


def demo(
    output: o.Output = Path("hf-mote-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts drawn and of the random controls.")] = 0,
    organism: Annotated[
        str, typer.Option(help="Which trained model: a name from `hf-mote organisms`, or the folder of one you built.")
    ] = "refusal",
    dry_run: o.DryRun = False,
) -> None:
    """Find the experts behind a small trained model's behaviour, switch them off and on, against random experts."""
    with reporting():
        check_folder(output, f"--output {output}")
        import torch  # imported here, because it takes seconds

        settle_progress()

        # The organism's matrices are too small for several threads, which are slow on a busy machine.
        torch.set_num_threads(1)
        if dry_run:
            _plan(organism, seed)
            return
        result = run_demo(output, seed=seed, organism=organism, announce=say)
    console = Console()
    console.print(_demo_table(result))
    example = result.methods[result.best].report
    answers = zip(example.prompts, example.responses_before, example.responses_after, strict=True)
    for prompt, was, now in list(answers)[:2]:
        console.print(f"\n{visible(prompt)}", style="bold", markup=False, highlight=False)
        tell(f"  untouched:  {was}\n  suppressed: {now}")
    tell(f"\n{result.verdict}")
    tell(f"{result.seconds:.0f} s. Configs, maps, rankings and pictures: {output}")
    tell(f"Open in a browser: {output / 'report.html'}")


def _plan(name: str, seed: int) -> None:
    """Print what would be done, after answering one batch."""
    from hf_mote.commands.model import Subject
    from hf_mote.commands.plan import Timed, TimedJudge, Work, plan_responses
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.evaluation.evaluate import OFF_TARGET, evaluate_mote
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.organisms.organism import load_organism
    from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts
    from hf_mote.ranking.causal.ablation import ablate_experts
    from hf_mote.routing.sites.discover import find_routers

    found = load_organism(name)
    model, tokenizer = found.model, found.tokenizer
    _, test = draw_prompts(found, seed=seed, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    tested = test["sensitive"]
    site = find_routers(model)[0]
    config = MoTEConfig.for_model(model, suppress=[[site.layer, 0]])
    elsewhere = len(test["neutral"]) + len(test["unrelated"])
    both = 2 + NUM_CONTROLS
    of_each = [*2 * [len(test["neutral"])], *both * [min(elsewhere, OFF_TARGET)]]
    of_each += 2 * [elsewhere] if elsewhere > OFF_TARGET else []
    short = tested[:NUM_REMOVED_PROMPTS]
    forwards = Timed.of(
        f"two forwards of {len(short)} prompts",
        lambda: ablate_experts(
            model, tokenizer, short, "yes", "no", experts=[(site.layer, 0)], resamples=0, progress=False
        ),
    )
    # Each expert takes one pass without it. Attribution takes a forward, a backward and a further forward pass.
    times = (2 * NUM_REMOVED + 1) / 2 + 2 * NUM_IMAGED / len(short)
    plan_responses(
        Subject(f"organism:{found.name}", model, tokenizer),
        PromptSet(f"organism:{found.name}", [*tested], [], None),
        Chat(tokenizer),
        Decoding(MAX_NEW_TOKENS, None, NUM_TESTED, seed),
        runs={"untouched": 2, "with the first experts": 2, "with random controls": 2 * NUM_CONTROLS},
        others=[2 * NUM_IMAGED, *2 * of_each],
        judge="the organism's own",
        left_out=["following the tokens of texts"],
        once=lambda some, longest: evaluate_mote(
            model,
            tokenizer,
            config,
            some,
            TimedJudge(found.judge),
            target="any",
            num_controls=0,
            batch_size=NUM_TESTED,
            max_new_tokens=longest,
            progress=False,
        ),
        each=2,  # untouched, and with the config
        more=[Work(forwards, times)],
        pictures=3,
    )


def _demo_table(result: DemoResult) -> Table:
    """Return a table with a column for each method and a row for each measurement."""
    planted = set(result.organism.planted)
    said = result.recipe.said
    controls = len(result.methods[result.best].report.controls)
    truth = f"{len(planted)} of them planted (*)" if planted else "none of them planted"
    table = Table(title=f"{result.num_experts} experts, {truth}; held-out prompts")
    table.add_column("", no_wrap=True)
    for name in result.methods:
        table.add_column(f"found by {name}", justify="right")

    def row(heading: str, value: Callable[[MethodResult], str]) -> None:
        table.add_row(heading, *(value(method) for method in result.methods.values()))

    row("experts, layer.expert", lambda m: " ".join(f"{a}.{b}{'*' * ((a, b) in planted)}" for a, b in m.experts))
    row(f"sensitive prompts {said}", lambda m: f"{m.report.before.rate:.1%}")
    row("…these experts suppressed", lambda m: f"{m.report.after.rate:.1%}")
    row(f"…{controls} x random ones, mean", lambda m: f"{fmean(m.report.controls):.1%}")
    row(f"…{controls} x random ones, least", lambda m: f"{min(m.report.controls):.1%}")
    row(f"neutral prompts {said}", lambda _: f"{result.neutral_before.rate:.1%}")
    row("…these experts stimulated", lambda m: f"{m.stimulated.rate:.1%}")
    row("other answers unchanged", lambda m: str(m.report.unrelated_unchanged).partition(" ")[0])
    return table
