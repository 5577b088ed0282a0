"""A few experts that a response depends on together, found by learning which routing weights to close.

Gradients at the untouched model and removals of one expert at a time both miss experts that replace each other: alone,
none of them matters. Here gates on all routing weights are learnt at once, with a price for each closed one; every
sequence has another sample of the gates, so that an expert is tried while others are closed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, DataError, UnsupportedError, real, whole
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.gains import Gains, attach_gains
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.hard_concrete import ClosingGates
from hf_mote.ranking.causal.knockout import Knockout, Pair, name_of
from hf_mote.ranking.causal.optimized import OptimizedRanking, PathPoint
from hf_mote.ranking.causal.preference import Block, LogitScore, Preference
from hf_mote.runs.folder import Record

__all__ = ["optimize_experts"]

# Defaults, which plans also use.
PENALTIES = (0.1, 0.03, 0.01, 0.003)
NUM_SEEDS = 2
STEPS = 60
MOST_CLOSED = 0.1  # initial probability of each gate to close
SOFTNESS = 0.05  # of the untouched score: up to this distance from the goal a prompt still has a gradient
CARRIES = 0.1  # of the untouched score: a carrier lowers it by at least this much
TRIED = 8  # experts, with each of the sufficient set put back


def optimize_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    goal: float = 0.0,
    enough: float = 0.9,
    penalties: Sequence[float] = PENALTIES,
    num_seeds: int = NUM_SEEDS,
    steps: int = STEPS,
    learning_rate: float = 0.2,
    batch_size: int = 12,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> OptimizedRanking:
    """Return the few experts without which a response is no longer preferred, and its other carriers.

    The score of a prompt is `S = log p(response | prompt) - log p(baseline | prompt)`. Gates between open (routing
    weights as they are) and closed (weight 0, `suppress_mode="zero"`) are learnt so that `S` falls to the goal while
    few gates close. Every set is then measured with its experts removed; unnecessary experts are put back, one at
    a time. To cause a response instead of removing it, exchange the two responses.

    Memory: that of one forward and backward pass of a batch, as for [`attribute_experts`]. Time: at most `num_seeds *
    len(penalties) * steps` of these, two for each step where two responses are compared, and some forwards over all
    prompts.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts to which the model gives the response, say.
        response (`str` or `Sequence[str]`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; differentiable.
        goal (`float`, *optional*, defaults to 0.0):
            The score at or below which the response is gone from a prompt. 0 is where both responses are as likely.
        enough (`float`, *optional*, defaults to 0.9):
            Share of prompts from which the response must be gone for a set to suffice, above 0 and at most 1.
        penalties (`Sequence[float]`, *optional*, defaults to `(0.1, 0.03, 0.01, 0.003)`):
            Prices of one expert, as shares of the untouched model's mean score above the goal: at 0.1 an expert closes
            if that takes a tenth of it. The highest comes first, and leads to the fewest experts; each seed ends with
            the first one whose set suffices.
        num_seeds (`int`, *optional*, defaults to 2): How often this is repeated, with other samples of the gates.
        steps (`int`, *optional*, defaults to 60): Batches for each penalty and seed; prompts come round again.
        learning_rate (`float`, *optional*, defaults to 0.2): Adam's, of the gates' logits.
        batch_size (`int`, *optional*, defaults to 12): Prompts that run together.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        seed (`int`, *optional*, defaults to 0): The first seed of the gates' samples.
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`OptimizedRanking`] with method `"optimization"`: the sufficient set first, then other carriers, then the
        rest. It has no p values: `evaluate_mote` measures on other prompts whether the set does more than random ones.

    Raises:
        [`ConfigError`]: if a number is out of range, or neither both responses nor a score are given.
        [`DataError`]: if prompts or responses are malformed, a score is not finite, or the untouched model's mean
            score is at the goal already.
        [`UnsupportedError`]: as [`attribute_experts`].

    Source: gates, Louizos et al. (2018), arXiv 1712.01312; for explaining a model by them, De Cao et al. (2020), "How
    do Decisions Emerge across Layers in Neural Models?" (arXiv 2004.14992), whose gates are predicted from the hidden
    states and not learnt one for each expert.

    Example:

    ```python
    from hf_mote import load_organism, optimize_experts

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4]
    ranking = optimize_experts(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts], penalties=[0.03], num_seeds=1, progress=False,
    )
    assert ranking.path[0].score < ranking.whole_score
    ```
    """
    where = "optimize_experts"
    prices = _checked(where, penalties, goal, enough, num_seeds, steps, learning_rate, seed)
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(where, "cannot compute derivatives inside torch.inference_mode", fix="Call it outside.")
    preference = Preference(
        where,
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    settings = {"goal": float(goal), "steps": steps, "learning_rate": float(learning_rate)}
    knockout = Knockout(preference, preference.folder(run_folder, **settings))
    seeds = range(seed, seed + num_seeds)
    with (
        attach_gains(knockout.routed, knockout.gains),
        progress_bar(total=len(seeds) * len(prices) * steps, desc="optimizing", disable=not progress) as bar,
    ):
        whole_score = float(knockout.values([]).mean())
        if whole_score <= goal:
            raise DataError(
                where,
                "the untouched model's mean score is at the goal already, so there is nothing to remove",
                got=f"{whole_score:.3g}",
                expected=f"above {goal:.3g}",
                fix="Give the prompts that show the response, or exchange response and baseline_response.",
            )
        search = _Search(knockout, goal=goal, enough=enough, scale=whole_score - goal)
        path, closed = [], torch.zeros(knockout.shape, dtype=torch.float64)
        for one in seeds:
            for price in prices:
                gates = ClosingGates(knockout.shape, closed=MOST_CLOSED, seed=one)
                search.learn(gates, price, steps, learning_rate, bar.update)
                path.append(search.point(gates, one, price))
                closed += gates.closing().detach().double()
                if path[-1].gone >= enough:
                    break
        by_seed = [search.sufficient([point for point in path if point.seed == one]) for one in seeds]
        found = [pairs for pairs in by_seed if pairs]
        smallest = min(found, key=lambda pairs: (len(pairs), float(knockout.values(pairs).mean()))) if found else []
        carriers = {pair for pairs in found for pair in pairs} | search.stand_ins(smallest)
    score = closed.masked_fill(~search.exists, 0) / len(path)
    for row, expert in carriers:
        score[row, expert] += 1
    for row, expert in smallest:
        score[row, expert] += 1
    layers = knockout.routed.layers

    def outside(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        return tuple((layers[row], expert) for row, expert in pairs)

    return OptimizedRanking(
        score=score,
        layers=layers,
        method="optimization",
        target=preference.name,
        fingerprint=knockout.routed.fingerprint,
        provenance={
            "prompts": preference.num_prompts,
            "unit": "probability of being closed, +1 for a carrier, +2 in the sufficient set",
            "goal": float(goal),
            "enough": float(enough),
            "steps": steps,
            "seeds": num_seeds,
            "seed": seed,
        },
        sufficient=outside(smallest),
        carriers=outside(sorted(carriers)),
        by_seed=tuple(outside(pairs) for pairs in by_seed),
        path=tuple(point._replace(experts=outside(point.experts)) for point in path),
        whole_score=whole_score,
        goal=float(goal),
    )


class _Search:
    """One model's gates, while gains are attached to it; experts are (row, expert) here."""

    def __init__(self, knockout: Knockout, *, goal: float, enough: float, scale: float) -> None:
        self.knockout = knockout
        self.goal, self.enough, self.scale = goal, enough, scale
        preference = knockout.preference
        self._batches = list(zip(*(preference.blocks(side) for side in preference.sides), strict=True))
        # What a record of gates holds besides the random numbers.
        self._gates = {"step": (), **dict.fromkeys(("logits", "exp_avg", "exp_avg_sq"), knockout.shape)}
        self.exists = torch.zeros(knockout.shape, dtype=torch.bool)
        for row, site in enumerate(knockout.sites):
            self.exists[row, : site.num_experts] = True

    def learn(self, gates: ClosingGates, price: float, steps: int, learning_rate: float, advance: Any) -> None:
        """Learn the gates: the score of each prompt falls to the goal, and each closed gate has its price."""
        optimizer = torch.optim.Adam([gates.logits], lr=learning_rate)
        folder, name = self.knockout.folder, f"gates-{gates.seed}-{price.hex()}"
        record = None if folder is None else folder.read(name, self._gates)
        done = 0 if record is None else self._restore(record, gates, optimizer)
        advance(done)
        for step in range(done, steps):
            blocks = self._batches[step % len(self._batches)]
            num = len(blocks[0].lengths)
            with torch.enable_grad():
                closing = gates.sample(num)
                scores, effects = self._derivatives(blocks, (1 - closing).detach())
                # The derivative of a softplus of each prompt's score: at the goal it is almost 0.
                asks = torch.sigmoid((scores - self.goal) / (SOFTNESS * self.scale)) / (self.scale * num)
                cost = price * gates.closing()[self.exists].sum()
                optimizer.zero_grad()
                torch.autograd.backward([closing, cost], [(-effects * asks[:, None, None]).float(), None])
            optimizer.step()
            gates.bound()
            if folder is not None:
                folder.write(name, {**gates.state(), **optimizer.state[gates.logits]}, {"done": step + 1})
            advance()

    def _restore(self, record: Record, gates: ClosingGates, optimizer: torch.optim.Adam) -> int:
        """Restore gates and optimizer from a record, and return the number of steps done."""
        gates.restore(record.tensors)
        optimizer.state[gates.logits] = {name: record.tensors[name] for name in ("step", "exp_avg", "exp_avg_sq")}
        return int(record.notes["done"])

    def point(self, gates: ClosingGates, seed: int, price: float) -> PathPoint:
        """Return the set of gates that are more closed than open, measured."""
        logits = gates.logits.detach().masked_fill(~self.exists, -torch.inf)
        pairs = [(int(row), int(expert)) for row, expert in (logits > 0).nonzero()]
        pairs.sort(key=lambda pair: (-float(logits[pair]), pair))
        scores = self.knockout.values(pairs)
        return PathPoint(seed, price, tuple(pairs), float(scores.mean()), self._gone(scores))

    def sufficient(self, points: Sequence[PathPoint]) -> list[Pair]:
        """Return the smallest set of a path that suffices, without unnecessary experts; empty if none does."""
        enough = [point for point in points if point.gone >= self.enough]
        if not enough:
            return []
        left = list(min(enough, key=lambda point: (len(point.experts), point.score)).experts)
        for pair in reversed(tuple(left)):
            fewer = [other for other in left if other != pair]
            if fewer and self._suffices(fewer):
                left = fewer
        return left

    def stand_ins(self, found: Sequence[Pair]) -> set[Pair]:
        """Return the experts that carry the response when one of a sufficient set is put back.

        The first ones of a first-order estimate are tried; the score without each decides.
        """
        standing: set[Pair] = set()
        for pair in found:
            others = [other for other in found if other != pair]
            left = float(self.knockout.values(others).mean())
            effects = self._kept_effects(others).masked_fill(~self.exists, -torch.inf)
            for row, expert in found:
                effects[row, expert] = -torch.inf
            for place in effects.flatten().topk(min(TRIED, effects.numel())).indices.tolist():
                other = divmod(place, effects.shape[1])
                if other in standing or not bool(effects[other].isfinite()):
                    continue
                if left - float(self.knockout.values([*others, other]).mean()) >= CARRIES * self.scale:
                    standing.add(other)
        return standing

    def _suffices(self, pairs: list[Pair]) -> bool:
        return self._gone(self.knockout.values(pairs)) >= self.enough

    def _gone(self, scores: Tensor) -> float:
        return float((scores <= self.goal).double().mean())

    def _kept_effects(self, without: list[Pair]) -> Tensor:
        folder = self.knockout.folder
        if folder is None:
            return self._effects(without)
        make = lambda: {"effects": self._effects(without)}  # noqa: E731
        return folder.kept(f"effects-{name_of(without)}", make, {"effects": self.knockout.shape})["effects"]

    def _effects(self, without: list[Pair]) -> Tensor:
        """Return the first-order effect of each expert on the mean score, halfway to all closed, without some."""
        total = torch.zeros(self.knockout.shape, dtype=torch.float64)
        for blocks in self._batches:
            half = torch.full((len(blocks[0].lengths), *self.knockout.shape), 0.5)
            for row, expert in without:
                half[:, row, expert] = 0
            with torch.enable_grad():
                total += self._derivatives(blocks, half)[1].sum(dim=0)
        return total

    def _derivatives(self, blocks: Sequence[Block], gains: Tensor) -> tuple[Tensor, Tensor]:
        """Return each prompt's score under its gains, `(prompts,)`, and its derivatives by them.

        One term of the score at a time, so that no more than one pass is held; the rows of a batch are
        independent, so that the derivative of their sum holds that of each.
        """
        trained: Gains = self.knockout.gains
        trained.zeros, trained.given, trained.differentiable = [], gains, True
        scores = torch.zeros(len(gains), dtype=torch.float64)
        effects = torch.zeros(gains.shape, dtype=torch.float64)
        try:
            for side, block in zip(self.knockout.preference.sides, blocks, strict=True):
                values = self.knockout.preference.values(block)
                effects += side * trained.derivatives(values.sum())
                scores += side * values.detach().double().cpu()
        finally:
            trained.given, trained.differentiable = None, False
        return scores, effects


def _checked(
    where: str,
    penalties: object,
    goal: object,
    enough: object,
    num_seeds: object,
    steps: object,
    learning_rate: object,
    seed: object,
) -> list[float]:
    """Return the penalties, the highest first, after checking all numbers."""
    real(f"{where}.goal", goal)
    real(f"{where}.enough", enough, above=0, most=1)
    real(f"{where}.learning_rate", learning_rate, above=0)
    whole(f"{where}.num_seeds", num_seeds, least=1)
    whole(f"{where}.steps", steps, least=1)
    whole(f"{where}.seed", seed)
    if isinstance(penalties, str) or not isinstance(penalties, Sequence) or not penalties:
        got = repr(penalties)[:60]
        raise ConfigError(f"{where}.penalties", "must be a list of numbers", got=got, expected="as in [0.1, 0.03]")
    for penalty in penalties:
        real(f"{where}.penalties", penalty, above=0)
    return sorted((float(penalty) for penalty in penalties), reverse=True)
