"""`hf-mote demo`: which method's experts it shows as the best."""

from typing import Any

from evaluation_reports import report_of

from hf_mote.commands.demo import DemoResult, MethodResult
from hf_mote.evaluation.coherence import Coherence
from hf_mote.statistics.rates import Rate

N = 40


def method(after: int, wrong: int) -> MethodResult:
    """A method whose experts leave so many refusals, and so many incoherent responses among the others."""
    labels = ["refusal"] * after + ["answer"] * (N - after)
    junk = [False] * after + [True] * wrong + [False] * (N - after - wrong)
    controls = [["answer"] * N] * 40  # which do as much, so that no config beats them
    seen = Coherence(0.5, 0.5, N, [False] * N, junk, [[False] * N] * 40, Rate.of(after + wrong, N))
    report = report_of(
        "refusal", Rate.of(N, N), Rate.of(after, N), [0.0] * 40, labels_before=["refusal"] * N, labels_after=labels,
        control_labels=controls, coherence=seen,
    )  # fmt: skip
    unused: Any = None
    return MethodResult(unused, report, Rate.of(0, N), 0)


def test_experts_that_break_the_text_are_not_the_best() -> None:
    unused: Any = None
    for other in (method(39, 0), method(30, 3)):
        methods = {"ftri": method(0, N), "attribution": other}
        assert DemoResult(unused, unused, methods, Rate.of(0, N), unused, [], [], 0, 0.0).best == "attribution"
