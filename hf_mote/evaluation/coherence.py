"""Which responses of a changed model are incoherent.

Taking experts out can break a model. Its responses then change their class because they are incoherent. A response
counts as incoherent if the model that wrote it was less sure of its tokens than the untouched model is of nearly all
of its own, if it repeats itself more than nearly all of those, if it is empty, or if the judge says "neither".

`tests/benchmarks/bench_coherence.py` compares other measures: perplexity under the
untouched model is *higher* for right answers, which that model would never give, than for incoherent text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_mote.errors import DataError, is_finite
from hf_mote.generation.certainty import Signs
from hf_mote.statistics.rates import Rate

__all__ = [
    "FALSE_ALARMS",
    "LEAST_SURPRISE",
    "NEITHER",
    "Coherence",
    "Limits",
    "coherent_effect",
    "incoherent",
    "less_sure",
    "limits_of",
]

FALSE_ALARMS = 0.05  # share of responses like the references that are called incoherent, at most
MOST_BROKEN = 2 * FALSE_ALARMS  # a config whose share of incoherent responses is surely above it breaks the text
LEAST_REFERENCES = 10  # to other prompts, to measure whether a model is less sure than before
MOST_UNSURE = 0.75
DOUBTFUL = 0.6
LEAST_SURPRISE = 0.05  # nats: tokens with a probability of 0.95 are not surprising
LEAST_REPEATED = 0.5  # of the token pairs
NEITHER = "neither"


class Limits(NamedTuple):
    """The limits above which a response counts as incoherent.

    Attributes:
        surprise (`float`): Nats per token.
        repeated (`float`): Share of repeated token pairs.
        references (`int`): Responses of the untouched model that they come from.
    """

    surprise: float
    repeated: float
    references: int


def limits_of(*references: Sequence[Signs]) -> Limits:
    """Return limits that each hold for all but 2.5 % of the reference responses.

    The limit is a conformal one: of responses that are exchangeable with those of one set, at most 5 % (of `n`
    references, or `2 / (n + 1)` if that is more) are above either. Of several sets the widest limit counts. It is
    never below 0.05 nats per token, or half of the token pairs.

    Args:
        references (`Sequence[Signs]`): Of responses of the untouched model; one set or more.

    Example:
        ```python
        from hf_mote.evaluation.coherence import limits_of
        from hf_mote.generation.certainty import Signs

        limits = limits_of([Signs(0.1, 0.0, False)] * 50, [Signs(0.6, 0.0, False)] * 50)
        assert limits.surprise == 0.6 and limits.repeated == 0.5 and limits.references == 100
        ```

    Source: Vovk, Gammerman and Shafer (2005), "Algorithmic Learning in a Random World", conformal prediction.
    """
    sets = [one for one in references if one]
    return Limits(
        max([LEAST_SURPRISE, *(_quantile([signs.surprise for signs in one]) for one in sets)]),
        max([LEAST_REPEATED, *(_quantile([signs.repeated for signs in one]) for one in sets)]),
        sum(len(one) for one in sets),
    )


def incoherent(signs: Sequence[Signs], labels: Sequence[str], limits: Limits, neither: str = NEITHER) -> list[bool]:
    """Return which responses are incoherent.

    Args:
        signs (`Sequence[Signs]`): Of the responses.
        labels (`Sequence[str]`): The judge's.
        limits (`Limits`): What [`limits_of`] returned.
        neither (`str`, *optional*, defaults to `"neither"`): The judge's label for a response that is not an answer at
            all.
    """
    return [
        one.empty or one.surprise > limits.surprise or one.repeated > limits.repeated or label == neither
        for one, label in zip(signs, labels, strict=True)
    ]


def coherent_effect(before: float, labels: Sequence[str], broken: Sequence[bool], target: str) -> float:
    """Return the change of a rate that is left when every incoherent response is counted against it.

    A rate falls by the responses that are of another class and coherent, and rises by those that are of the class and
    coherent. It is never larger than the change of the rate, and 0 if incoherent responses account for all of it.

    Args:
        before (`float`): The rate in the untouched model.
        labels (`Sequence[str]`): The judge's labels of the changed model's responses.
        broken (`Sequence[bool]`): Which of these are incoherent.
        target (`str`): The class whose rate it is.
    """
    pairs = list(zip(labels, broken, strict=True))
    most = sum(label == target or wrong for label, wrong in pairs) / len(pairs)
    least = sum(label == target and not wrong for label, wrong in pairs) / len(pairs)
    return min(0.0, most - before) + max(0.0, least - before)


@dataclass(frozen=True)
class Coherence:
    """How many responses are incoherent.

    Attributes:
        limit_surprise (`float`): Nats per token above which a response counts as incoherent.
        limit_repeated (`float`): Share of repeated token pairs above which it does.
        references (`int`): Responses of the untouched model that the limits come from.
        before (`list[bool]`): For each prompt, whether the untouched model's response is incoherent.
        after (`list[bool]`): The same with the config.
        controls (`list[list[bool]]`): The same with each control.
        counted (`Rate`): The rate with the config, incoherent responses counted against the change.
        unsure (`float`, *optional*): Chance that a response with the config is one of which its model is less sure
            than the untouched model of a reference; 0.5 where they are equal.
        unsure_low (`float`, *optional*): Lower end of its one-sided 95 % interval.
        surprise (`float`, *optional*): Mean over the responses with the config of how little sure their model was of
            their tokens, in nats per token; to compare configs on the same prompts.
    """

    limit_surprise: float
    limit_repeated: float
    references: int
    before: list[bool]
    after: list[bool]
    controls: list[list[bool]]
    counted: Rate
    unsure: float | None = None
    unsure_low: float | None = None
    surprise: float | None = None

    def __post_init__(self) -> None:
        for name in ("limit_surprise", "limit_repeated"):
            value = getattr(self, name)
            if not is_finite(value) or value < 0:
                raise DataError(f"Coherence.{name}", "must be a finite limit", got=repr(value))
        lists = [self.before, self.after, *(self.controls if isinstance(self.controls, list) else [None])]
        flags = all(isinstance(one, list) and all(isinstance(flag, bool) for flag in one) for one in lists)
        if not flags or len({len(one) for one in lists}) > 1 or not self.before:
            raise DataError("Coherence", "must hold a flag for each response", got=repr(lists)[:80])
        for name in ("unsure", "unsure_low", "surprise"):
            value = getattr(self, name)
            if value is not None and not is_finite(value):
                raise DataError(f"Coherence.{name}", "must be a number", got=repr(value))
        if not isinstance(self.references, int) or isinstance(self.references, bool) or self.references < 0:
            raise DataError("Coherence.references", "must be a number of responses", got=repr(self.references))

    @property
    def share_before(self) -> Rate:
        """Share of the untouched model's responses that are incoherent."""
        return Rate.of(sum(self.before), len(self.before))

    @property
    def share_after(self) -> Rate:
        """Share of the responses with the config that are incoherent."""
        return Rate.of(sum(self.after), len(self.after))

    @property
    def broken(self) -> bool:
        """Whether the config breaks the text.

        It does if surely more than 10 % of the responses are incoherent, and more than before; or if the model with
        the config is so much less sure of its responses than the untouched model of the references that this
        shows significantly in three of four pairs.
        """
        after, before = self.share_after, self.share_before
        if self.unsure_low is not None and self.unsure_low > MOST_UNSURE:
            return True
        return after.low > MOST_BROKEN and after.low > before.rate

    @property
    def doubtful(self) -> bool:
        """Whether the responses can be classified neither as coherent nor as incoherent.

        They cannot if the model with the config is surely less sure of them than of the references in three of five
        pairs, and does not break the text. Where the untouched model is unsure of the references themselves, it is
        hardly less sure of a short incoherent response.
        """
        return self.unsure_low is not None and self.unsure_low > DOUBTFUL and not self.broken

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Coherence:
        """Return it from the values in a file.

        Args:
            values (`dict`): Its fields.
        """
        return cls(**{**values, "counted": Rate(**values["counted"])})


def less_sure(signs: Sequence[Signs], references: Sequence[Signs]) -> tuple[float, float] | None:
    """Return the chance that a response is one of which its model is less sure than of a reference, and its lower end.

    What is below 0.05 nats per token counts as 0.05. The standard error is that of Hanley and McNeil
    (1982), "The Meaning and Use of the Area under a ROC Curve".

    Args:
        signs (`Sequence[Signs]`): Of responses.
        references (`Sequence[Signs]`): Of the untouched model's responses to other prompts.

    Returns:
        `tuple[float, float]`: 0 to 1; `None` with fewer than ten references.
    """
    if len(references) < LEAST_REFERENCES or not signs:
        return None
    above = [max(one.surprise, LEAST_SURPRISE) for one in signs]
    below = [max(one.surprise, LEAST_SURPRISE) for one in references]
    won = sum((one > other) + 0.5 * (one == other) for one in above for other in below)
    chance = won / (len(above) * len(below))
    first, second = chance / (2 - chance), 2 * chance**2 / (1 + chance)
    spread = chance * (1 - chance) + (len(above) - 1) * (first - chance**2) + (len(below) - 1) * (second - chance**2)
    return chance, chance - 1.645 * math.sqrt(max(0.0, spread) / (len(above) * len(below)))


def _quantile(values: Sequence[float], level: float = 1 - FALSE_ALARMS / 2) -> float:
    """Return the value that a further one is at or below with at least this chance."""
    place = math.ceil((len(values) + 1) * level)
    return sorted(values)[min(place, len(values)) - 1]
