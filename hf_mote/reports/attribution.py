"""The page of `hf-mote attribute`: which experts favour one response over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from hf_mote.links.latent_expert_map import LatentExpertMap
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.reports.configs import UNMEASURED, config_part
from hf_mote.reports.explorer import FIRST, Explored, expert_panel, expert_part, explorer_data
from hf_mote.reports.formats import decimals_for, number, percent, signed
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.links import latents_of_experts
from hf_mote.reports.markup import Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.rankings import decimals_of, ranking_verdict
from hf_mote.reports.tables import folded, table
from hf_mote.reports.tokens import RoutedText, token_section

__all__ = ["Attribution", "attribution_page", "attribution_verdict"]

TARGET, BASELINE = "target", "baseline"


class Attribution(NamedTuple):
    """The result of attribution.

    Attributes:
        model (`str`): The model's name.
        ranking (`ExpertRanking`): The ranking, in nats; of patching, in shares of a difference.
        prompts (`list[str]`): The prompts.
        targets (`list[str]`): The target response to each.
        baselines (`list[str]`): The baseline response to each.
        preference (`list[float]`): log p(target) - log p(baseline) for each prompt, in nats.
        top (`int`): How many experts are looked at closely.
        texts (`list[RoutedText]`): Prompts with both responses, and the routing weight of `traced`.
        traced (`Sequence[tuple[int, int]]`): (layer, expert) that are followed, the first `top` of the ranking first.
        config (`Mapping`, *optional*): The config of the first experts, as `MoTEConfig.to_dict` gives it.
        latents (`Sequence[LatentExpertMap]`): Which latents of an SAE predict or drive experts.
        corrupted (`Sequence[str]`): Of patching, the corrupted prompt of each.
    """

    model: str
    ranking: ExpertRanking
    prompts: list[str]
    targets: list[str]
    baselines: list[str]
    preference: list[float]
    top: int
    texts: list[RoutedText]
    traced: Sequence[tuple[int, int]] = ()
    config: Mapping[str, Any] | None = None
    latents: Sequence[LatentExpertMap] = ()
    corrupted: Sequence[str] = ()


def attribution_verdict(found: Attribution) -> tuple[str, bool]:
    """Return the finding of attribution, and whether it is significant.

    Args:
        found (`Attribution`): What it found.
    """
    ranking = found.ranking
    if isinstance(ranking, OptimizedRanking):
        return ranking.verdict, bool(ranking.chosen)
    relation = "bring the target response back" if ranking.method == "patching" else "speak for the target response"
    verdict = ranking_verdict(ranking, relation=relation)
    mean = sum(found.preference) / len(found.preference)
    n = len(found.preference)
    share = percent(sum(value > 0 for value in found.preference) / n, n)
    text = (
        f"{verdict.text} The untouched model finds the target likelier than the baseline on {share} of the prompts "
        f"({signed(mean, 1)} nats on average)."
    )
    if verdict.significant:
        text += " Whether these experts control the behaviour is for hf-mote evaluate to say."
    return text, bool(verdict.significant)


def attribution_page(found: Attribution, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Attribution`): The result of attribution.
        provenance (`Mapping[str, str]`): How it came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    verdict, anything = attribution_verdict(found)
    ranking = found.ranking
    explored = _explored(found)
    figure = heat_map(
        ranking.matrix(),
        ranking.layers,
        title=_title(ranking),
        unit=_unit(ranking),
        digits=3,
        marked=explored.marked,
        series="score:0",
    )
    experts = join([tag("p", _method(ranking), class_="faint"), expert_part(explored), expert_panel()])
    sections = [Section("experts", "Experts", experts), Section("maps", "Heat map", figure)]
    if found.texts:
        tokens = token_section(found.traced[: found.top], found.texts, TARGET)
        sections.append(Section("tokens", "Tokens that route to them", tokens))
    if found.latents:
        latents = latents_of_experts(found.latents, ranking.top(min(found.top, FIRST)))
        sections.append(Section("latents", "Latents that predict or drive them", latents))
    if found.config is not None:
        sections.append(Section("config", "Config", config_part(found.config, note=UNMEASURED, linked=True)))
    sections += [
        Section("responses", "Prompts and responses", _responses(found)),
        provenance_section(provenance, files),
    ]
    subject = f"{found.model}: {len(found.prompts)} prompts"
    title = "Experts behind a response"
    data = explorer_data(explored)
    return make_page(title, subject=subject, verdict=verdict, found=anything, sections=sections, data=data)


def _explored(found: Attribution) -> Explored:
    ranking = found.ranking
    removed: dict[str, dict[tuple[int, int], str]] = {}
    if ranking.method == "ablation":
        # Experts that were not tried have no p value.
        tried = [row for row in ranking.rows(len(ranking)) if row.p is not None and row.p == row.p]
        decimals = decimals_of(ranking)
        removed["taken out alone, log p(target) − log p(baseline) changes by"] = {
            (row.layer, row.expert): f"{signed(-row.score, decimals)} nats" for row in tried
        }
    return Explored(
        rankings={ranking.method: ranking},
        target=TARGET,
        relation=("Speaks for the", "Speaks against the"),
        marked={f"the first {found.top}": ranking.top(found.top)},
        texts=found.texts,
        traced=found.traced,
        removed=removed,
        config=found.config,
        latents=found.latents,
    )


def _title(ranking: ExpertRanking) -> str:
    if isinstance(ranking, OptimizedRanking):
        return "How surely each expert is closed where the target is to be no likelier than the baseline"
    if ranking.method == "patching":
        return "Share of the difference in log p(target) − log p(baseline) that each expert brings back"
    return "What each expert adds to log p(target) − log p(baseline)"


def _unit(ranking: ExpertRanking) -> str:
    return "" if isinstance(ranking, OptimizedRanking) else ranking.unit


def _method(ranking: ExpertRanking) -> str:
    if isinstance(ranking, OptimizedRanking):
        tried = "; ".join(
            f"seed {point.seed}, price {point.penalty:g}: {len(point.experts)} experts, "
            f"{point.score:.3g} nats left, gone from {percent(point.gone)}"
            for point in ranking.path
        )
        return (
            "Gates on all routing weights were learnt together, each closed one at a price. The score is the mean "
            "probability of being closed, 1 more for a carrier and 2 more in the sufficient set. Sets found, each "
            f"measured with its experts taken out, of {ranking.whole_score:.3g} nats: {tried}.{_completion(ranking)}"
        )
    if ranking.method == "ablation":
        how = "Each expert is taken out alone; its score is how far log p(target) − log p(baseline) falls without it."
        return f"{how} {ranking.provenance.get('experts')} experts were tried; the others have score 0 and no p value."
    if ranking.method == "patching":
        known = ranking.provenance
        at = "at all tokens" if "positions" not in known else f"at the positions {known['positions']}"
        clean, corrupted = (signed(float(known[name]), 1) for name in ("clean", "corrupted"))
        return (
            f"The corrupted prompt runs with what one expert adds for the clean one, {at}. The score is the share "
            f"that comes back of the difference in log p(target) − log p(baseline): {clean} nats for the clean "
            f"prompts and {corrupted} for the corrupted ones on average. {known['experts']} experts were tried; any "
            "others have score 0 and no p value."
        )
    gain = ranking.provenance.get("gain")
    how = "First order: routing weight times derivative of log p(target) − log p(baseline), summed over tokens"
    return f"{how}, taken with all routing weights times {gain}. Intervals and p (sign flips) are over prompts."


def _completion(ranking: OptimizedRanking) -> str:
    if not ranking.completion:
        return ""
    grown = "; ".join(
        f"{step.suppress_mode}, {len(step.experts)} experts, {step.held_back:.3g} nats, gone from {percent(step.gone)}"
        for step in ranking.completion
    )
    return (
        " From the sufficient set the complete set was grown in each mode of suppression; mode, experts, mean log "
        f"likelihood of the baseline response on {ranking.provenance.get('held_back')} prompts held back, and share "
        f"of these from which the target is gone: {grown}. The complete set has a score 3 higher."
    )


def _responses(found: Attribution) -> Html:
    values = sorted(found.preference)
    middle = values[len(values) // 2]
    decimals = max(0, decimals_for(values) - 1)
    spread = table(
        "log p(target) − log p(baseline) in the untouched model, nats",
        ["least", "median", "most"],
        [[number(value, decimals) for value in (values[0], middle, values[-1])]],
        numeric=(0, 1, 2),
    )
    items = [
        tag(
            "li",
            tag("p", prompt, class_="asked text", dir="auto"),
            *([] if other is None else [tag("p", f"corrupted: {other}", class_="text", dir="auto")]),
            tag(
                "dl",
                tag("div", tag("dt", chip(TARGET, TARGET)), tag("dd", target, class_="text", dir="auto")),
                tag("div", tag("dt", chip(BASELINE)), tag("dd", baseline, class_="text", dir="auto")),
                class_="sides",
            ),
            tag("p", f"preference {signed(value, decimals)} nats", class_="faint"),
        )
        for prompt, target, baseline, value, other in zip(
            found.prompts[:200],
            found.targets,
            found.baselines,
            found.preference,
            found.corrupted or repeat(None),
            strict=False,
        )
    ]
    return join([spread, folded("{n} more prompts", items, shown=5, kind="pairs", more="None.")])
