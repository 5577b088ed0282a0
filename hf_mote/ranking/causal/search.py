"""A set of experts that a response depends on together, built up greedily.

The effect of one expert alone misses experts that replace each other; here a set grows by the expert that helps most,
given the experts in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.deprecation import renamed_arguments
from hf_mote.errors import ConfigError, DataError, FileFormatError, first_line, real, whole
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.hub import RESULT_LIMIT, Shareable, read_json, write_json
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import checked_fingerprint
from hf_mote.mote.gains import attach_gains
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.knockout import Knockout, Pair
from hf_mote.ranking.causal.preference import LogitScore, Preference
from hf_mote.version import __version__

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ExpertSearch", "search_experts"]

_KIND = "expert_search"


@dataclass(frozen=True)
class ExpertSearch(Shareable):
    """The result of a greedy search.

    Args:
        experts (`list[tuple[int, int]]`): (layer, expert) in the order in which they were added.
        scores (`list[float]`): The mean score without the first n of them, from n = 0 on.
        evaluations (`int`): Sets of experts that were tried.
        fingerprint (`dict`): The model's.

    Raises:
        [`DataError`]: if an expert is not a pair of numbers or comes twice, or there is not one more score.
        [`ConfigError`]: if the fingerprint is malformed, or so many sets cannot have been tried.
    """

    experts: list[Pair]
    scores: list[float]
    evaluations: int
    fingerprint: dict[str, Any]

    file_name: ClassVar[str] = "expert_search.json"

    def __post_init__(self) -> None:
        pairs = list(self.experts) if isinstance(self.experts, list | tuple) else [self.experts]
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise DataError("ExpertSearch.experts", "not an expert", got=repr(pair)[:60], expected="layer, expert")
            for number in pair:
                whole("ExpertSearch.experts", number)
        if len(set(map(tuple, pairs))) < len(pairs):
            raise DataError("ExpertSearch.experts", "names an expert twice", got=repr(pairs)[:80])
        if not isinstance(self.scores, list | tuple) or len(self.scores) != len(pairs) + 1:
            got = len(self.scores) if isinstance(self.scores, list | tuple) else repr(self.scores)[:60]
            raise DataError(
                "ExpertSearch.scores", "not one for each size", got=got, expected=f"{len(pairs) + 1} scores"
            )
        scores = [real("ExpertSearch.scores", score) for score in self.scores]
        object.__setattr__(self, "experts", [(layer, expert) for layer, expert in pairs])
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "fingerprint", checked_fingerprint(self.fingerprint))
        sizes = dict(zip(self.fingerprint["layers"], self.fingerprint["num_experts"], strict=True))
        for layer, expert in self.experts:
            if expert >= sizes.get(layer, 0):
                known = "an expert of the model of the fingerprint"
                raise DataError("ExpertSearch.experts", "does not exist", got=(layer, expert), expected=known)
        # The first round tries every candidate once, each further one at least one that is left, and at most all.
        added, all_experts = len(self.experts), sum(sizes.values())
        most = sum(max(all_experts - step, 0) for step in range(added + 1))
        whole("ExpertSearch.evaluations", self.evaluations, least=max(1, 2 * added - 1), most=most)

    def _to_file(self, path: Path) -> None:
        write_json(path, {"kind": _KIND, "version": __version__, **asdict(self)})

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        found = read_json(path, limit=RESULT_LIMIT)
        names = {one.name for one in fields(cls)}
        if found.get("kind") != _KIND or not names <= set(found):
            got, expected = (
                sorted(map(str, found))[:8],
                f"a file that ExpertSearch wrote, with {', '.join(sorted(names))}",
            )
            raise FileFormatError(str(path), "must be an expert search", got=got, expected=expected)
        try:
            return cls(**{name: found[name] for name in names})
        except (ConfigError, DataError) as error:
            raise FileFormatError(str(path), "does not hold a valid expert search", got=first_line(error)) from error

    def to_config(self, n: int | None = None, **more: Any) -> MoTEConfig:
        """Return the config that suppresses the first `n` experts, all by default, as they were tried: mode `"zero"`.

        Args:
            n (`int`, *optional*): How many, at most as many as were found.
            **more: Further fields of [`MoTEConfig`].

        Raises:
            [`ConfigError`]: if there are fewer.
        """
        n = len(self.experts) if n is None else n
        if not 0 <= n <= len(self.experts):
            raise ConfigError("ExpertSearch.to_config.n", "out of range", got=n, expected=f"0..{len(self.experts)}")
        chosen: dict[str, Any] = {
            "suppress": sorted([layer, expert] for layer, expert in self.experts[:n]),
            "suppress_mode": "zero",
            "fingerprint": self.fingerprint,
            "provenance": {"method": "greedy search", "evaluations": self.evaluations},
        }
        return MoTEConfig(**chosen | more)


@renamed_arguments(target="response", baseline="baseline_response", score="logit_score")
def search_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    max_experts: int,
    logit_score: LogitScore | None = None,
    experts: Iterable[Pair] | None = None,
    max_evaluations: int | None = None,
    least_gain: float = 0.0,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ExpertSearch:
    """Return a set of experts without which the score is low, grown by the expert that lowers it most.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts to which the model gives the response, say.
        response (`str` or `Sequence[str]`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        max_experts (`int`): Largest set, 1 or more.
        logit_score (`Callable`, *optional*): See [`attribute_experts`]; need not be differentiable.
        experts (`Iterable[tuple[int, int]]`, *optional*, defaults to all): Candidates, such as `ranking.top(30)`.
        max_evaluations (`int`, *optional*):
            Budget: sets of experts to try, at least as many as there are candidates. After the first round, which
            tries each of them, candidates come in the order of their effect alone; when the budget is spent, the best
            so far is taken.
        least_gain (`float`, *optional*, defaults to 0.0): It ends when no candidate lowers the mean score by more.
        batch_size (`int`, *optional*, defaults to 8): Prompts that run together.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`ExpertSearch`]

    Raises:
        [`UnknownNameError`]: if an expert does not exist.
        [`ConfigError`]: if a number is out of range, or the budget does not reach for each candidate once.
        [`DataError`]: if prompts or responses are malformed, or a score is not finite.
        [`UnsupportedError`]: if the model draws random numbers, as with dropout in training mode.

    Example:

    ```python
    from hf_mote import load_organism, search_experts

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:2]
    found = search_experts(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts], max_experts=2, experts=organism.planted,
        progress=False,
    )
    assert found.scores[2] < found.scores[1] < found.scores[0]
    ```
    """
    whole("search_experts.max_experts", max_experts, least=1)
    if max_evaluations is not None:
        whole("search_experts.max_evaluations", max_evaluations, least=1)
    real("search_experts.least_gain", least_gain)
    preference = Preference(
        "search_experts",
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    knockout = Knockout(preference)
    left = knockout.rows_of(experts)
    most = sum(max(len(left) - step, 0) for step in range(max_experts))
    allowed = most if max_evaluations is None else min(most, max_evaluations)
    if allowed < len(left):
        raise ConfigError(
            "search_experts.max_evaluations",
            "is too few to try each candidate once",
            got=max_evaluations,
            expected=f"{len(left)} or more",
            fix="Give fewer candidates, such as experts=ranking.top(30), best of a ranking by attribute_experts.",
        )
    knockout.folder = preference.folder(run_folder)
    chosen: list[Pair] = []
    evaluations = 0
    with (
        attach_gains(knockout.routed, knockout.gains),
        progress_bar(total=allowed, desc="searching", disable=not progress) as bar,
    ):
        scores = [float(knockout.values([]).mean())]
        while left and len(chosen) < max_experts and evaluations < allowed:
            tried = left[: allowed - evaluations]
            found = []
            for pair in tried:
                found.append(float(knockout.values([*chosen, pair]).mean()))
                bar.update()
            evaluations += len(tried)
            if not chosen:
                alone = dict(zip(tried, found, strict=True))
            best = min(range(len(tried)), key=found.__getitem__)
            if scores[-1] - found[best] <= least_gain:
                break
            chosen.append(tried[best])
            scores.append(found[best])
            left.remove(tried[best])
            left.sort(key=alone.__getitem__)
    pairs = [(knockout.sites[row].layer, expert) for row, expert in chosen]
    return ExpertSearch(pairs, scores, evaluations, knockout.routed.fingerprint)
