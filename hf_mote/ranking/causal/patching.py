"""Which experts are sufficient for a response: their updates from a clean run, put into a corrupted one.

A clean prompt gets the response, a corrupted one, which is nearly the same, does not. In the corrupted run one expert
writes what it writes in the clean run, and all else stays. The share of the difference that comes back is the expert's
score. Ablation asks the opposite: whether the response needs an expert.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import DataError
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.updates import LayerUpdates, Updates, attach_updates
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.knockout import Knockout, Pair, grids_of
from hf_mote.ranking.causal.preference import Block, LogitScore, Preference
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.groups import checked_groups, group_means, paired_groups
from hf_mote.statistics.resampling import check_resampling

__all__ = ["PatchedLayers", "patch_experts", "patch_layers"]


def patch_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    clean_prompts: Sequence[Prompt],
    corrupted_prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    experts: Iterable[Pair] | None = None,
    positions: Sequence[int] | None = None,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ExpertRanking:
    """Return experts by the share of a difference that the update of each, from a clean run, brings back alone.

    For each pair of prompts let `S = log p(response | prompt) - log p(baseline | prompt)`. The update of an expert at
    a token is its output times its routing weight, 0 where it is not chosen. The corrupted prompt runs with the
    updates of one expert replaced by those that it has in the clean prompt at the same tokens; all that comes later
    follows. The score is `sum(patched S - corrupted S) / sum(clean S - corrupted S)`, with sums over pairs: 1 for an
    expert that brings back all of the difference, 0 for one without effect, below 0 for one that adds to it. An
    expert that neither run chose at these tokens has a score of 0, without a forward.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model in evaluation mode, any float dtype; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        clean_prompts (`Sequence[str]` or chats):
            Prompts for which the response is likely.
        corrupted_prompts (`Sequence[str]` or chats):
            For each of them one for which it is less so. The two of a pair have the same number of tokens, and best
            differ in few, so that each token stands where its counterpart does. Pairs of different lengths are taken
            if all `positions` are negative.
        response (`str` or `Sequence[str]`, *optional*):
            As in [`attribute_experts`]: one for all pairs, or one for each. So are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; need not be differentiable.
        experts (`Iterable[tuple[int, int]]`, *optional*, defaults to all):
            (layer, expert) to try. The others get score 0 and no interval, p or q value.
        positions (`Sequence[int]`, *optional*):
            Patch at these tokens of prompt and response alone, by default at all; as in `MoTEConfig.positions`, so
            that `[-1]` is the last token of each prompt.
        batch_size (`int`, *optional*, defaults to 8): Pairs that run together. What is kept of a pass grows with them,
            not with layers or experts: `2 * top_k * hidden_size` numbers for each token.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        groups (`Sequence`, *optional*): See [`attribute_experts`]; one key for each pair.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the bootstrap intervals over pairs, in which `sum(clean S - corrupted S)` stays as it is.
        resamples (`int`, *optional*, defaults to 999): For intervals and sign-flip tests; 0 for scores alone.
        seed (`int`, *optional*, defaults to 0): Seed of both.
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`ExpertRanking`] with method `"patching"`; `provenance` has the mean `S` of clean and corrupted prompts, in
        nats. q values are over the experts tried.

    Raises:
        [`DataError`]: if the prompts are not pairs, a pair cannot be aligned, the clean prompts do not favour the
            response over the corrupted ones, prompts or responses are malformed, or a score is not finite.
        [`ConfigError`]: if no expert is given, or neither both responses nor a score are, or a number is out of range.
        [`UnknownNameError`]: if an expert does not exist.
        [`UnsupportedError`]: if the update of one expert cannot be computed: the block runs no module on the chosen
            experts and their weights (as those of Llama 4 and JetMoE), or what that returns is not the sum of the
            updates; if the model draws random numbers, or is compiled.

    Sources: Meng et al. (2022), "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262), section 2,
    there of hidden states; Zhang and Nanda (2024), "Towards Best Practices of Activation Patching in Language Models"
    (arXiv 2309.16042), for pairs of prompts instead of noise and for differences of logits as the measure.

    Example:

    ```python
    from hf_mote import load_organism, patch_experts

    organism = load_organism("refusal")
    other = "What took place in 1809 in Shrewsbury?"
    ranking = patch_experts(
        organism.model, organism.tokenizer, ["What took place in 1809 in Vienna?"], [other],
        "I am sorry, but I cannot talk about that.", organism.answers[other],
        experts=organism.planted, resamples=0, progress=False,
    )
    assert ranking.rows(1)[0].score > 0.5
    ```
    """
    check_resampling("patch_experts", confidence, resamples, seed)
    pairs = _Pairs(
        "patch_experts",
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        clean_prompts,
        corrupted_prompts,
        positions=positions,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    grouped = checked_groups("patch_experts.groups", groups, pairs.number)
    knockout = Knockout(pairs.corrupted)
    tried = knockout.rows_of(experts)
    wanted = [{expert for row, expert in tried if row == place} for place in range(len(knockout.sites))]
    layers = [row for row, there in enumerate(wanted) if there]
    folder = pairs.corrupted.folder(
        run_folder, clean_sha256=pairs.clean.prompts_digest, tried=sorted(tried), **pairs.settings
    )
    effects = torch.zeros(pairs.number, *knockout.shape, dtype=torch.float64)
    scores = torch.zeros(2, pairs.number, dtype=torch.float64)
    with (
        torch.no_grad(),
        attach_updates(knockout.routed) as updates,
        progress_bar(
            total=pairs.number * len(layers) * len(pairs.corrupted.sides), desc="patching", disable=not progress
        ) as bar,
    ):
        for side, clean, corrupted in pairs.blocks():
            rows = slice(clean.first, clean.first + len(clean.lengths))
            for row in layers:
                make = partial(_effects, pairs, updates, clean, corrupted, row, wanted[row])
                name = f"side-{side}-pair-{clean.first:06d}-router-{row:04d}"
                number = len(clean.lengths)
                shapes = {"effects": (number, knockout.sites[row].num_experts), "scores": (2, number)}
                found = make() if folder is None else folder.kept(name, make, shapes)
                effects[rows, row, : found["effects"].shape[1]] += side * found["effects"]
                if row == layers[0]:
                    scores[:, rows] += side * found["scores"]
                bar.update(number)
    difference = pairs.difference(scores[0], scores[1], grouped)
    shares = torch.stack([effects[:, row, expert] for row, expert in tried], dim=1)[:, None] / difference
    units, sides = paired_groups(torch.cat([shares, torch.zeros_like(shares)]).numpy(), grouped)
    compared = contrast(units, sides, rest="paired", confidence=confidence, resamples=resamples, seed=seed)
    counted = f"{pairs.number} pairs of prompts"
    return ExpertRanking(
        layers=knockout.routed.layers,
        method="patching",
        target=pairs.corrupted.name,
        confidence=compared.confidence,
        fingerprint=knockout.routed.fingerprint,
        provenance={
            "prompts": pairs.number,
            "unit": "of the difference",
            "experts": len(tried),
            "clean": float(scores[0].mean()),
            "corrupted": float(scores[1].mean()),
            "difference_in": pairs.corrupted.unit,
            **pairs.settings,
            "compared": counted if grouped is None else f"{max(grouped) + 1} groups of {counted}",
            **({} if compared.permutations is None else {"permutations": compared.permutations}),
        },
        least_p=compared.least_p,
        **grids_of(compared, tried, knockout.shape),
    )


class PatchedLayers(NamedTuple):
    """The share of a difference that the routed output of each layer brings back, from a clean run.

    Attributes:
        layers (`list[int]`): Absolute decoder layers.
        shares (`list[float]`): Of each: 1 if it brings back all of the difference.
        together (`float`): The share that all of them bring back at once: how much of it routed experts carry.
        clean (`float`): Mean score of the clean prompts.
        corrupted (`float`): Mean score of the corrupted prompts.
        unit (`str`): Of the two scores.
    """

    layers: list[int]
    shares: list[float]
    together: float
    clean: float
    corrupted: float
    unit: str

    def __str__(self) -> str:
        best = max(range(len(self.layers)), key=self.shares.__getitem__)
        return (
            f"the routed output of all layers brings back {self.together:.0%} of the difference "
            f"({self.corrupted:.3g} to {self.clean:.3g} {self.unit}), that of layer {self.layers[best]} alone "
            f"{self.shares[best]:.0%}"
        )


def patch_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    clean_prompts: Sequence[Prompt],
    corrupted_prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    positions: Sequence[int] | None = None,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> PatchedLayers:
    """Return the share of a difference that all routed experts of a layer bring back together, for each layer.

    As [`patch_experts`], with the updates of all experts of a layer at once. It takes a forward for each layer and
    pair, and shows in which layers single experts are worth trying.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        clean_prompts (`Sequence[str]` or chats): As in [`patch_experts`]; so are the arguments not listed.
        corrupted_prompts (`Sequence[str]` or chats): See there.
        response (`str` or `Sequence[str]`, *optional*): See there.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there.
        positions (`Sequence[int]`, *optional*): See there.
        batch_size (`int`, *optional*, defaults to 8): Pairs that run together. The routed output of all layers is kept
            of them: `layers * hidden_size` numbers for each token.
        system_prompt (`str`, *optional*): See there.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See there.
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Raises:
        [`DataError`], [`ConfigError`], [`UnsupportedError`]: as [`patch_experts`].

    Example:

    ```python
    from hf_mote import load_organism, patch_layers

    organism = load_organism("refusal")
    other = "What took place in 1809 in Shrewsbury?"
    found = patch_layers(
        organism.model, organism.tokenizer, ["What took place in 1809 in Vienna?"], [other],
        "I am sorry, but I cannot talk about that.", organism.answers[other], progress=False,
    )
    assert found.together > 0.8
    ```
    """
    pairs = _Pairs(
        "patch_layers",
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        clean_prompts,
        corrupted_prompts,
        positions=positions,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    routed = RoutedModel(model)
    rows = range(len(routed.sites))
    # Clean, corrupted, each layer, all layers.
    totals = torch.zeros(3 + len(rows), dtype=torch.float64)
    with (
        torch.no_grad(),
        attach_updates(routed) as updates,
        progress_bar(
            total=pairs.number * len(pairs.corrupted.sides), desc="patching layers", disable=not progress
        ) as bar,
    ):
        for side, clean, corrupted in pairs.blocks():
            outputs: dict[int, Tensor] = {}
            updates.outputs, updates.where = outputs, pairs.tokens(clean)
            found = [pairs.clean.values(clean)]
            updates.check_ran()
            updates.outputs, updates.where = None, pairs.tokens(corrupted)
            for changed in ([], *([row] for row in rows), rows):
                updates.instead = {row: outputs[row] for row in changed}
                found.append(pairs.corrupted.values(corrupted))
            updates.instead = {}
            totals += side * torch.stack([values.double().cpu().sum() for values in found])
            bar.update(len(clean.lengths))
    clean_mean, corrupted_mean, *patched = (totals / pairs.number).tolist()
    difference = pairs.difference(torch.tensor([clean_mean]), torch.tensor([corrupted_mean]), None)
    shares = [(value - corrupted_mean) / difference for value in patched]
    unit = pairs.corrupted.unit
    return PatchedLayers(list(routed.layers), shares[:-1], shares[-1], clean_mean, corrupted_mean, unit)


class _Pairs:
    """Clean and corrupted prompts with the same responses, aligned token by token."""

    def __init__(
        self,
        where: str,
        model: PreTrainedModel,
        chat: Chat,
        clean_prompts: Sequence[Prompt],
        corrupted_prompts: Sequence[Prompt],
        *,
        positions: Sequence[int] | None,
        **measured: Any,
    ) -> None:
        self.where = where
        self.clean = Preference(where, model, chat, clean_prompts, argument="clean_prompts", **measured)
        self.corrupted = Preference(where, model, chat, corrupted_prompts, argument="corrupted_prompts", **measured)
        self.number = self.clean.num_prompts
        if self.number != self.corrupted.num_prompts:
            what, expected = "must be one for each clean prompt", f"{self.number} prompts"
            raise DataError(self.corrupted.place, what, got=self.corrupted.num_prompts, expected=expected)
        self.positions = None if positions is None else self.clean.checked_positions(positions)
        self._check_aligned()

    def _check_aligned(self) -> None:
        """Refuse pairs whose tokens do not stand in the same places."""
        from_end = self.positions is not None and self.positions[-1] < 0
        lengths = zip(self.clean.prompt_lengths, self.corrupted.prompt_lengths, strict=True)
        for index, (clean, corrupted) in enumerate(lengths):
            got = f"{corrupted} tokens, and {clean} in {self.clean.place}[{index}]"
            where = f"{self.corrupted.place}[{index}]"
            if clean != corrupted and not from_end:
                raise DataError(
                    where,
                    "must have as many tokens as its clean prompt, or their tokens cannot be aligned",
                    got=got,
                    fix="Word one of them otherwise, leave the pair out, or give positions that count from the end "
                    "of the prompt, as [-1].",
                )
            if from_end and self.positions is not None and -self.positions[0] > min(clean, corrupted):
                raise DataError(
                    where,
                    "must have a token at every position, and so must its clean prompt",
                    got=got,
                    expected=f"{-self.positions[0]} tokens or more, for position {self.positions[0]}",
                )

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on beside prompts and responses."""
        return {} if self.positions is None else {"positions": self.positions}

    def tokens(self, block: Block) -> Tensor:
        """Return which tokens of a block are patched, bool `(prompts * columns,)`."""
        return block.tokens_at(self.positions)

    def blocks(self) -> Iterator[tuple[int, Block, Block]]:
        """Yield the side of each term, clean prompts and their corrupted ones, batch by batch."""
        for side in self.clean.sides:
            for clean, corrupted in zip(self.clean.blocks(side), self.corrupted.blocks(side), strict=True):
                yield side, clean, corrupted

    def difference(self, clean: Tensor, corrupted: Tensor, groups: Sequence[int] | None) -> float:
        """Return the mean of `clean - corrupted` over pairs, or over groups of them.

        Raises:
            [`DataError`]: if it is not above 0.
        """
        apart = (clean - corrupted).numpy()
        found = float((apart if groups is None else group_means(apart, groups)).mean())
        if found <= 0:
            raise DataError(
                self.where,
                "the clean prompts do not favour the response over the corrupted ones, so that there is nothing to "
                "bring back",
                got=f"a mean score of {float(clean.mean()):.3g} and {float(corrupted.mean()):.3g}",
                fix="Exchange clean_prompts and corrupted_prompts, or response and baseline_response.",
            )
        return found


def _effects(
    pairs: _Pairs, updates: Updates, clean: Block, corrupted: Block, row: int, wanted: set[int]
) -> dict[str, Tensor]:
    """What the score of each corrupted prompt gains by each expert of a layer, and the scores without."""
    updates.wanted = row
    from_clean, clean_score = _read(updates, pairs.tokens(clean), pairs.clean, clean)
    from_corrupted, score = _read(updates, pairs.tokens(corrupted), pairs.corrupted, corrupted)
    updates.wanted = None
    found = torch.zeros(len(score), updates.sites[row].num_experts, dtype=torch.float64)
    for expert in sorted((from_clean.used | from_corrupted.used) & wanted):
        change = from_clean.of(expert) - from_corrupted.of(expert)
        if bool(change.any()):
            updates.added = {row: change}
            found[:, expert] = (pairs.corrupted.values(corrupted).double() - score.double()).cpu()
    updates.added = {}
    return {"effects": found, "scores": torch.stack([clean_score, score]).double().cpu()}


def _read(updates: Updates, where: Tensor, preference: Preference, block: Block) -> tuple[LayerUpdates, Tensor]:
    updates.where = where
    score = preference.values(block)
    return updates.read(), score
