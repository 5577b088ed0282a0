"""Model cards: the Hub's metadata, the sections in their order, and the pictures beside them.

A shared object composes its card from its own text and from [`Evidence`]: what a ranking, a map or a report adds to
the card of the config that was made with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from hf_mote.errors import ConfigError

__all__ = [
    "CardNotes",
    "Evidence",
    "Picture",
    "card_header",
    "compose_card",
    "effect_plot",
    "evidence_of",
    "heat_map",
    "reads_as_repository",
]

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
MADE_HERE = "<!-- made by hf_mote; take this line out to keep the card when the folder is written again -->"
CARD = "README.md"
LIBRARY = "hf_mote"
LICENSES = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class Picture(NamedTuple):
    """A picture of a card.

    Attributes:
        file_name (`str`): Its file, in the folder of the card.
        caption (`str`): What it shows.
        draw (`Callable[[Path], object]`): Writes it to a path.
    """

    file_name: str
    caption: str
    draw: Callable[[Path], object]


@dataclass(frozen=True)
class Evidence:
    """What one object adds to the card of another.

    Attributes:
        sections (`Mapping[str, str]`): Headings and their markdown, in order.
        results (`Sequence[tuple[str, float]]`): Names and values for the Hub's table of results.
        measured_on (`str`): What the results were measured on, as "60 prompts".
        pictures (`Sequence[Picture]`): Pictures, shown after the sections.
    """

    sections: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[tuple[str, float]] = ()
    measured_on: str = ""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class CardNotes:
    """What only the author knows.

    Attributes:
        datasets (`Sequence[str]`): Hub ids of the data sets that it was made or measured with.
        license (`str`, *optional*): Name of the license, as the Hub has it: `"apache-2.0"`.
        intended_use (`str`, *optional*): What it is for.
        misuse (`str`, *optional*): What it is not for, and could be misused for.

    Raises:
        [`ConfigError`]: if a value is malformed.
    """

    datasets: Sequence[str] = ()
    license: str | None = None
    intended_use: str | None = None
    misuse: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.datasets, str) or not all(isinstance(one, str) for one in self.datasets):
            raise ConfigError("datasets", "must be a list of Hub ids", got=repr(self.datasets)[:80])
        for name in self.datasets:
            if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", name):
                raise ConfigError("datasets", "must be a Hub id", got=repr(name), expected="such as 'org/name'")
        if self.license is not None and not (isinstance(self.license, str) and LICENSES.fullmatch(self.license)):
            raise ConfigError(
                "license", "must be a license of the Hub", got=repr(self.license), expected="'apache-2.0'"
            )
        for name in ("intended_use", "misuse"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text.strip()):
                raise ConfigError(name, "must be a text", got=repr(text)[:80])


def evidence_of(parts: Sequence[tuple[str, Evidence]]) -> list[Evidence]:
    """Return what several objects add to one card, with their pictures in their folders.

    Args:
        parts (`Sequence[tuple[str, Evidence]]`): Folder below the card's, or nothing, and what is added.
    """
    return [
        replace(part, pictures=[one._replace(file_name=f"{place}/{one.file_name}") for one in part.pictures])
        if place
        else part
        for place, part in parts
    ]


def reads_as_repository(name: str) -> bool:
    """Return whether a name reads as a Hub id: an owner and a repository.

    Args:
        name (`str`): Of a model.
    """
    return _REPO.fullmatch(name) is not None


def card_header(
    *,
    tags: Iterable[str] = (),
    base_model: str | None = None,
    about: str = "mixture-of-experts",
    notes: CardNotes | None = None,
    name: str | None = None,
    evidence: Sequence[Evidence] = (),
) -> str:
    """Return a card's YAML front matter, fences included.

    Args:
        tags (`Iterable[str]`, *optional*):
            Added to "hf_mote" and `about`.
        base_model (`str`, *optional*):
            The model this belongs to; left out unless it reads as a Hub id, as the Hub refuses any other.
        about (`str`, *optional*, defaults to `"mixture-of-experts"`):
            What kind of thing it is about.
        notes ([`CardNotes`], *optional*):
            Data sets and license.
        name (`str`, *optional*):
            What the results are of, in the Hub's table.
        evidence (`Sequence[Evidence]`, *optional*):
            Where the results come from.
    """
    notes = notes if notes is not None else CardNotes()
    base = base_model if base_model and reads_as_repository(base_model) else None
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=notes.datasets[0] if notes.datasets else "prompts",
            dataset_name=one.measured_on or "prompts",
            metric_type=re.sub(r"\W+", "_", metric.lower()).strip("_"),
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for one in evidence
        for metric, value in one.results
    ]
    more: dict[str, Any] = {} if base is None else {"base_model_relation": "adapter"}
    data = ModelCardData(
        library_name=LIBRARY,
        tags=list(dict.fromkeys([LIBRARY, about, *tags])),
        base_model=base,
        datasets=list(notes.datasets) or None,
        license=notes.license,
        eval_results=results or None,
        model_name=(name or LIBRARY) if results else None,
        **more,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def compose_card(
    header: str,
    title: str,
    opening: str,
    *,
    load: str,
    notes: CardNotes,
    evidence: Sequence[Evidence] = (),
    sections: Mapping[str, str] | None = None,
    intended_use: str,
    misuse: str,
) -> str:
    """Return a card: what it is, how it is loaded, what was measured, what it is for and not for, how it was made.

    Args:
        header (`str`): From [`card_header`].
        title (`str`): Heading.
        opening (`str`): What it is, in markdown.
        load (`str`): Python that loads it.
        notes ([`CardNotes`]): What the author says.
        evidence (`Sequence[Evidence]`, *optional*): What was measured.
        sections (`Mapping[str, str]`, *optional*): Further headings and their markdown, at the end.
        intended_use (`str`): Text under that heading if the author gives none.
        misuse (`str`): The same for misuse.
    """
    pictures = [f"![{one.caption}]({one.file_name})" for part in evidence for one in part.pictures]
    parts = [f"# {title}\n\n{opening.strip()}", f"## To load it\n\n```python\n{load.strip()}\n```"]
    for part in evidence:
        parts += [f"## {heading}\n\n{text.strip()}" for heading, text in part.sections.items()]
    if pictures:
        parts.append("## Pictures\n\n" + "\n\n".join(pictures))
    parts.append(f"## Intended use\n\n{(notes.intended_use or intended_use).strip()}")
    parts.append(f"## Misuse and limits\n\n{(notes.misuse or misuse).strip()}")
    parts += [f"## {heading}\n\n{text.strip()}" for heading, text in (sections or {}).items()]
    return f"{header}\n" + "\n\n".join(parts) + "\n"


def heat_map(
    matrix: Any,
    layers: Sequence[int],
    *,
    title: str,
    label: str,
    file_name: str = "expert_map.png",
    marked: Mapping[str, Iterable[tuple[int, int]]] | None = None,
) -> Picture:
    """Return the picture of layers by experts; see [`~hf_mote.plots.plot_expert_map`].

    Args:
        matrix (`torch.Tensor` of shape `(layers, experts)`): What to show.
        layers (`Sequence[int]`): Absolute decoder layer of each row.
        title (`str`): Heading, and caption.
        label (`str`): What the colours mean.
        file_name (`str`, *optional*): Its file.
        marked (`Mapping[str, Iterable[tuple[int, int]]]`, *optional*): Experts to circle, by name.
    """

    def draw(path: Path) -> None:
        from hf_mote.plots import plot_expert_map

        plot_expert_map(matrix, layers, title=title, label=label, marked=marked, path=path)

    return Picture(file_name, title, draw)


def effect_plot(rows: Sequence[tuple[str, float, float, float, Sequence[float] | None]], *, rate_name: str) -> Picture:
    """Return the picture of rates beside their random controls; see [`~hf_mote.plots.plot_effect`].

    Args:
        rows (`Sequence[tuple]`): Label, rate, ends of its interval, and controls of each row.
        rate_name (`str`): What the rate is a rate of.
    """

    def draw(path: Path) -> None:
        from hf_mote.plots import EffectRow, plot_effect

        plot_effect([EffectRow(*row) for row in rows], rate_name=rate_name.replace("$", r"\$"), path=path)

    return Picture("effect.png", f"{rate_name}, with random controls", draw)
