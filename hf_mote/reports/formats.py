"""How numbers and labels are written: few digits, a real minus sign, a dash for unknown values."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

__all__ = [
    "decimals_by",
    "decimals_for",
    "decimals_of_means",
    "isolated",
    "number",
    "percent",
    "probability",
    "quoted",
    "share",
    "signed",
]

UNKNOWN = "–"
_DIGITS = 4
_MANY = 200  # prompts from which a tenth of a per cent is meaningful

_TURNING = frozenset({"R", "AL", "AN", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_ISOLATES = dict.fromkeys(range(0x2066, 0x206A))


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with four significant digits, or with a number of decimals.

    Args:
        value (`float`, *optional*): The number.
        decimals (`int`, *optional*): As [`decimals_for`] gives them for a column.

    Example:
        ```python
        from hf_mote.reports.formats import number

        assert [number(x) for x in (12.34567, -0.5, 12345.6, 3, None)] == ["12.35", "−0.5", "12,346", "3", "–"]
        assert number(3, 2) == "3.00"
        ```
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 10 ** (_DIGITS - 1) else f"{value:.{_DIGITS}g}"
    return text.replace("-", "−")


def decimals_for(values: Iterable[float | None]) -> int:
    """Return how many decimals show the largest of some numbers with four digits, so that a column lines up."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    return min(9, max(0, _DIGITS - 1 - math.floor(math.log10(largest)))) if largest else 0


def decimals_by(lows: Iterable[float | None], highs: Iterable[float | None]) -> int | None:
    """Return how many decimals some intervals carry, two digits of their half width; `None` where none has a width.

    Args:
        lows (`Iterable[float | None]`): Lower ends.
        highs (`Iterable[float | None]`): Upper ends.
    """
    ends = [(low, high) for low, high in zip(lows, highs, strict=True) if low is not None and high is not None]
    widths = sorted((high - low) / 2 for low, high in ends if math.isfinite(high - low) and high > low)
    return min(9, max(0, 1 - math.floor(math.log10(widths[len(widths) // 2])))) if widths else None


def decimals_of_means(n: int, values: Iterable[float | None]) -> int:
    """Return how many decimals means over `n` prompts carry, so that a column lines up.

    Args:
        n (`int`): Prompts, 1 or more.
        values (`Iterable[float | None]`): The means of whole numbers, as of tokens.
    """
    return min(math.ceil(math.log10(n)), decimals_for(values))


def signed(value: float | None, decimals: int | None = None) -> str:
    """Return a number with its sign, plus included; see [`number`]."""
    text = number(value, decimals)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def percent(value: float | None, n: int | None = None) -> str:
    """Return a share, 0 to 1, as a percentage.

    Args:
        value (`float`, *optional*): The share.
        n (`int`, *optional*):
            Of how many: whole per cents below 200, because so few prompts give no more precision. One decimal by
            default.

    Example:
        ```python
        from hf_mote.reports.formats import percent

        assert [percent(0.375), percent(3 / 8, 8), percent(1 / 150, 150), percent(1.0, 8)] == [
            "37.5%", "38%", "1%", "100%"
        ]
        assert percent(0.004, 120) == "< 1%"  # some, and not none
        ```
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if n is None or n >= _MANY:
        return f"{value:.1%}".replace("-", "−")
    text = f"{value:.0%}".replace("-", "−")
    if text == "0%" and value > 0:
        return "< 1%"
    return "> 99%" if text == "100%" and value < 1 else text


def share(value: float) -> str:
    """Return a share, 0 to 1, that may be small, as a percentage: one decimal, and two digits below 1 %.

    Args:
        value (`float`): The share.

    Example:
        ```python
        from hf_mote.reports.formats import share

        assert [share(x) for x in (0.1234, 0.0051, 0.00002, 0)] == ["12.3%", "0.51%", "0.002%", "0%"]
        ```
    """
    if value >= 0.01 or value <= 0:
        return percent(value) if value else "0%"
    return f"{100 * value:.{1 - math.floor(math.log10(100 * value))}f}".rstrip("0").rstrip(".") + "%"


def probability(value: float | None, least: float | None = None) -> str:
    """Return a p or q value: three decimals, and "< 0.001" below; two where it cannot be below 0.01.

    Args:
        value (`float`, *optional*): The value.
        least (`float`, *optional*): Least that it could have been.
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if least is not None and least >= 0.01:
        return f"{value:.2f}"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def isolated(text: str) -> str:
    """Return a text that cannot change the direction of the text around it.

    Text from right to left, and the control characters that override a direction, end with a mark that Unicode has for
    this; other text stays as it is.
    """
    if not any(unicodedata.bidirectional(character) in _TURNING for character in text):
        return text
    # Isolates within are left out, since one that closes too early would let the rest out.
    return f"\u2068{text.translate(_ISOLATES)}\u2069"


def quoted(label: str) -> str:
    """Return a label in quotation marks, which cannot change the direction of the text around it."""
    return f"“{isolated(label)}”"
