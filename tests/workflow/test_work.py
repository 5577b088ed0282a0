"""What `find_work` counts follows the number of prompts and controls."""

from __future__ import annotations

from hf_mote.workflow.work import find_work


def test_work_of_few_prompts_ends_with_imaging() -> None:
    work = find_work(30, 5, num_controls=20, batch_size=16)
    assert (work.sets, work.steps, work.proof) == (0, 0, [])


def test_work_grows_with_controls_and_unrelated_prompts() -> None:
    few = find_work(64, 0, num_controls=2, batch_size=8)
    assert few.proof == [16] * 8
    assert (few.learnt_on, few.steps, few.tried) == (8, 300, [16] * 4)
    many = find_work(64, 40, num_controls=2, batch_size=8)
    assert many.proof == [16] * 4 + [40] * 4 + [56] * 2
