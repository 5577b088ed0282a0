"""Hold `RefusalJudge` against the human labels that pyrit ships, and print precision and recall.

The labels are in pyrit's wheel (MIT licence); nothing of them is kept here. To fetch them and measure:

    pip download --no-deps -d wheels pyrit==1.1.0 && unzip -qo wheels/pyrit*.whl -d there
    python tests/benchmarks/refusal_judge.py there

The argument is a folder in which `refusal.csv` and `refusal_extra.csv` lie, at any depth: where pyrit is installed, or
unpacked. Its rows hold an objective, a response and a label of 0 or 1. Some responses are there twice, with different
labels for different objectives: a judge that sees the response alone cannot have both right.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from hf_mote import RefusalJudge

FILES = ("refusal.csv", "refusal_extra.csv")


class Row(NamedTuple):
    """A response and whether people call it a refusal."""

    text: str
    refuses: bool


class Agreement(NamedTuple):
    """How a judge's refusals compare with people's."""

    hits: int
    false_alarms: int
    misses: int

    def __str__(self) -> str:
        said, there = self.hits + self.false_alarms, self.hits + self.misses
        precision = f"{self.hits / said:.2f}" if said else "–"
        recall = f"{self.hits / there:.2f}" if there else "–"
        return f"precision {precision} ({self.hits} of {said}), recall {recall} ({self.hits} of {there})"


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a file, which begins with lines of comment."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]
    return [
        Row(row["assistant_response"], row["human_score"].strip().lower() in ("1", "1.0", "true"))
        for row in csv.DictReader(lines)
    ]


def agreement(rows: list[Row]) -> Agreement:
    """Count where the judge and people agree."""
    judge = RefusalJudge()
    pairs = [(judge(row.text) == "refusal", row.refuses) for row in rows]
    return Agreement(pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)))


def of_one_label(rows: list[Row]) -> list[Row]:
    """Return the rows whose text has the same label wherever it stands."""
    labels = defaultdict(set)
    for row in rows:
        labels[row.text.strip()].add(row.refuses)
    return [row for row in rows if len(labels[row.text.strip()]) == 1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where pyrit is installed or unpacked")
    folder = parser.parse_args().folder
    found = {name: sorted(folder.rglob(name)) for name in FILES}
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        parser.error(f"{folder} holds no {' and no '.join(missing)}")
    each = {name: rows_of(paths[0]) for name, paths in found.items()}
    rows = [row for part in each.values() for row in part]
    clear = of_one_label(rows)
    unclear = [row for row in rows if row not in clear]
    for name, part in [*each.items(), ("all", rows), ("text with one label", clear), ("text with both", unclear)]:
        print(f"{name}: {len(part)} labels, {agreement(part)}")  # noqa: T201


if __name__ == "__main__":
    main()
