"""An upper bound of the work of `find_experts`, counted before it begins."""

from __future__ import annotations

from typing import NamedTuple

from hf_mote.evaluation.evaluate import OFF_TARGET
from hf_mote.ranking.causal.optimization import STEPS
from hf_mote.workflow.candidates import MOST_OPTIMIZED, PENALTIES, SHARES, STEPPING_IN
from hf_mote.workflow.find import LEAST_PROMPTS, MOST_TRIED, MOST_UNRELATED

__all__ = ["FindWork", "find_work"]


class FindWork(NamedTuple):
    """The work if half of the prompts show the class.

    Attributes:
        sets (`int`): Sets of experts that are tried at most; 0 if so few prompts end the work after imaging.
        tried (`list[int]`): Responses of each trial, batch after batch.
        compared (`list[int]`): Responses by which replacement experts are found.
        steps (`int`): Batches that gates learn from at most.
        learnt_on (`int`): Prompts of such a batch.
        proof (`list[int]`): Responses of the measurement with its controls.
    """

    sets: int
    tried: list[int]
    compared: list[int]
    steps: int
    learnt_on: int
    proof: list[int]


def find_work(num_prompts: int, num_unrelated: int, *, num_controls: int, batch_size: int) -> FindWork:
    """Return an upper bound of the work of `find_experts`, if half of the prompts are of the class.

    Not counted are the complete set and its trials, trials without one expert each of the best set, and more controls
    where these do not decide.

    Args:
        num_prompts (`int`): Prompts to find experts with.
        num_unrelated (`int`): Further ones whose answers should stay.
        num_controls (`int`): Random configs to measure against.
        batch_size (`int`): Prompts that run together.

    Example:
        ```python
        from hf_mote.workflow.work import find_work

        work = find_work(160, 0, num_controls=20, batch_size=16)
        assert (work.sets, work.tried, len(work.proof)) == (13, [16, 16, 40, 40], 44)
        assert find_work(20, 0, num_controls=20, batch_size=16).sets == 0
        ```
    """
    shown = num_prompts // 2
    if shown < 2 * LEAST_PROMPTS:
        return FindWork(0, [], [], 0, 0, [])
    half = shown // 2
    # In the half to look at, and in the other one.
    tried, prove, tried_others = min(MOST_TRIED, half), shown - half, (num_prompts - shown) // 2
    others = num_prompts - shown - tried_others + num_unrelated
    optimized = min(MOST_OPTIMIZED, half)
    both = 2 + num_controls
    return FindWork(
        sets=len(SHARES) + 2 + len(PENALTIES) + len(STEPPING_IN),
        tried=[tried, tried, min(tried_others, MOST_UNRELATED), min(tried_others, MOST_UNRELATED)],
        compared=[optimized, optimized],
        steps=len(PENALTIES) * STEPS,
        learnt_on=min(optimized, batch_size),
        proof=[
            *both * [prove],
            *both * [min(others, OFF_TARGET)],
            *([others, others] if others > OFF_TARGET else []),
        ],
    )
