"""How objects print: one block in a terminal, escaped HTML with a picture in a notebook, rows for pandas."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest
import torch
from evaluation_reports import report_of
from html_pages import parse_page
from tiny_models import tiny_model

from hf_mote import ActivationMap, EvaluationReport, ExpertRanking, FTRIResult, MoTEConfig, find_routers
from hf_mote.errors import UnsupportedError
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.printing import Printable, Summary
from hf_mote.statistics.rates import Rate

ATTACK = "</table><script>alert(1)</script>\n  x\x1b[31m"


def grid(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def activation_map() -> ActivationMap:
    counts = grid([3.0, 0.0, 1.5], [0.0, 2.25, 0.0])
    return ActivationMap(
        counts=counts, weights=counts / 2, layers=(1, 2), num_tokens=4.0, provenance={"class": ATTACK}
    )


def ranking() -> ExpertRanking:
    score = grid([3.0, 0.5, -2.0])
    known = {"low": score - 1, "high": score + 1, "confidence": 0.9, "p": score.abs() / 100, "q": score.abs() / 50}
    return ExpertRanking(score=score, layers=(4,), method="by hand", target=ATTACK, least_p=0.001, **known)


def result() -> FTRIResult:
    counts = torch.arange(24.0).view(4, 2, 3)
    return FTRIResult(
        prompts=[ATTACK] * 4, responses=["r"] * 4, classes=["a", "b"] * 2, counts=counts, weights=counts / 2,
        num_tokens=torch.full((4,), 5.0), layers=(1, 2), scope="prompt", fingerprint=None,
    )  # fmt: skip


def report(after: int = 1) -> EvaluationReport:
    texts = [ATTACK] * 8
    return report_of(
        target=ATTACK, before=Rate.of(8, 8), after=Rate.of(after, 8), controls=[1.0] * 19,
        config=MoTEConfig(suppress=[[4, 1]]).to_dict(), prompts=texts, responses_before=texts,
        responses_after=["other"] * 8, labels_before=[ATTACK] * 8, labels_after=[ATTACK] * after + ["n"] * (8 - after),
    )  # fmt: skip


OBJECTS = {
    "map": activation_map,
    "ranking": ranking,
    "result": result,
    "report": report,
    "config": lambda: MoTEConfig(suppress=[[4, 1]], base_model=ATTACK),
    "sweep": lambda: Sweep("m", ATTACK, "suppress", [Setting(1, 1.0, report()), Setting(2, 1.0, report(0))]),
    "routers": lambda: find_routers(tiny_model("mixtral")),
}


@pytest.fixture(params=OBJECTS)
def shown(request: pytest.FixtureRequest) -> Any:
    return OBJECTS[request.param]()


def test_object_prints_as_one_block(shown: Any) -> None:
    lines = repr(shown).splitlines()
    assert 2 <= len(lines) <= 16
    assert not lines[0].startswith(" ")
    assert all(line.startswith("  ") for line in lines[1:])
    assert all(character.isprintable() for line in lines for character in line)


def test_object_in_a_notebook_is_escaped_and_shows_its_picture(shown: Any) -> None:
    root = parse_page(shown._repr_html_())
    assert root.all("script") == []
    pictures = root.all("img")
    assert len(pictures) == int(hasattr(shown, "plot"))
    assert all(picture.attributes["src"].startswith("data:image/png;base64,iVBOR") for picture in pictures)


def test_object_gives_rows_and_plain_data(shown: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = shown.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) > 0
    json.dumps(shown.to_dict())


def test_find_routers_prints_a_table_and_stays_a_list() -> None:
    sites = find_routers(tiny_model("mixtral"))
    assert isinstance(sites, list)
    assert type(sites[:1]) is list
    title, head, *rows = repr(sites).splitlines()
    assert title == f"{len(sites)} routers, {sum(site.num_experts for site in sites)} experts"
    assert head.split() == ["layer", "path", "experts", "top_k", "rule"]
    first = sites[0]
    assert rows[0].split()[:4] == [str(first.layer), first.path, str(first.num_experts), str(first.top_k)]
    assert "softmax" in rows[0]
    assert sites.to_dict()["routers"][0]["path"] == first.path


def test_ranking_prints_its_first_experts_with_what_is_known() -> None:
    text = repr(ranking())
    assert "1 of 3 experts stand out" in text
    rows = [line.split() for line in text.splitlines()[-4:]]
    assert rows[0] == ["expert", "score", "90%", "interval", "p", "q"]
    assert rows[1] == ["4.0", "3", "2", "to", "4", "0.03", "0.06"]
    frame = ranking().to_pandas()
    assert frame.index.tolist() == [1, 2, 3]
    assert frame.loc[1, ["layer", "expert", "score"]].tolist() == [4, 0, 3.0]


def test_config_prints_targets_modes_and_how_it_is_checked() -> None:
    config = MoTEConfig(
        suppress=[[4, expert] for expert in range(20)], bias=[[5, 1, 0.5]], strength=0.5, scope="prompt"
    )
    text = repr(config)
    assert text.splitlines()[0] == "MoTEConfig: 21 experts"
    assert "4.11 and 8 more (drop)" in text
    assert "5.1 (0.5) (on logits)" in text
    assert "strength" in text
    assert "it has no fingerprint" in text
    assert config.to_pandas().shape == (21, 4)


def test_long_cells_are_cut_and_rows_counted() -> None:
    class Many(Printable):
        def _summary(self) -> Summary:
            return Summary("Many", columns={"n": range(1000), "text": ["a b\n" * 100] * 1000}, rows=1000)

    lines = repr(Many()).splitlines()
    assert lines[-1] == "  … 990 more"
    assert max(map(len, lines)) < 80
    assert lines[2].split()[0] == "0"


def test_to_pandas_without_pandas_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **known: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **known)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedError, match="pip install pandas"):
        activation_map().to_pandas()


def test_plots_draw_what_the_object_holds(tmp_path: Any) -> None:
    figure = activation_map().plot("weight", path=tmp_path / "map.png")
    assert figure.axes[0].images[0].get_array().max() == 1.5
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert ranking().plot(2).axes[0].collections[0].get_offsets().tolist() == [[0, 0], [1, 0]]
    assert result().plot("a").axes[0].images[0].get_array().shape == (2, 3)
