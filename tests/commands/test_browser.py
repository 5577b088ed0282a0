"""The reports in a real browser: they open from the disk, ask for nothing, complain of nothing, and can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from command_runs import ran
from html_pages import check_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(params=["ftri_run", "attribute_run", "evaluate_run", "sweep_run", "hostile_run"])
def report(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder / "report.html"


def test_browser_shows_what_was_written_and_asks_for_nothing(chromium: Browser, report: Path) -> None:
    chromium.open(report)
    tree = check_page(report.read_text(encoding="utf-8"))
    assert chromium.complaints == []
    address = report.absolute().as_uri()
    assert [url for url in chromium.requests if not url.startswith("data:image/png;base64,")] == [address]
    assert chromium.ask("document.title") == tree.all("title")[0].text
    assert chromium.ask("document.scripts.length") == 0
    for name in ("tr", "figure", "svg", "h2", "circle", "rect"):
        assert chromium.ask(f"document.querySelectorAll('{name}').length") == len(tree.all(name))
    assert chromium.ask("document.querySelector('#verdict').textContent") == tree.one("verdict").text
    sections = chromium.ask("[...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == [section.attributes["id"] for section in tree.all("section")]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_browser_page_fits_its_window_and_has_contrast(
    chromium: Browser, report: Path, width: int, dark: bool
) -> None:
    chromium.open(report, width=width, dark=dark)
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    assert chromium.ask("document.querySelector('#verdict').getBoundingClientRect().top") < 450
    ink, paper = (
        chromium.ask(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert contrast(ink, paper) >= 7
    assert (sum(paper) < sum(ink)) == dark
    faint = chromium.ask("getComputedStyle(document.querySelector('.subject')).color.match(/\\d+/g).map(Number)")
    assert contrast(faint, paper) >= 4.5


def test_browser_pictures_are_drawn(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    boxes = chromium.ask("[...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(boxes) == 3
    assert all(width > 600 and height > 80 for width, height in boxes)
    coloured = "[...document.querySelectorAll('.tokens .t')].map(t => getComputedStyle(t).backgroundColor)"
    assert len(set(chromium.ask(coloured))) > 1


def test_browser_folded_parts_open(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    folded = "[...document.querySelectorAll('#tokens details')]"
    assert chromium.ask(f"{folded}.map(d => d.open)") == [True, False, False, False]
    chromium.ask(f"{folded}[1].querySelector('summary').click()")
    assert chromium.ask(f"{folded}.map(d => d.open)") == [True, True, False, False]


@pytest.mark.parametrize(("width", "beside"), [(390, False), (1280, True)])
def test_browser_answers_of_a_turn_lie_side_by_side_where_there_is_room(
    chromium: Browser, evaluate_run: Path, width: int, beside: bool
) -> None:
    chromium.open(evaluate_run / "report.html", width=width)
    turns = "[...document.querySelectorAll('#conversations .turns > li')]"
    boxes = "[...turn.querySelectorAll('.sides > div')].map(box => box.getBoundingClientRect())"
    places = chromium.ask(f"{turns}.map(turn => {boxes}.map(box => [box.left, box.top, box.width]))")
    assert len(places) == 3
    for (left, top, room), (other_left, other_top, other_room) in places:
        assert (top == other_top) == beside
        assert (left + room <= other_left) == beside
        assert abs(room - other_room) < 1
        assert room > 150


def test_browser_policy_blocks_a_script_that_got_in(chromium: Browser, ftri_run: Path, tmp_path: Path) -> None:
    text = (ftri_run / "report.html").read_text(encoding="utf-8")
    attack = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png' onerror='document.title=1'>"
    (tmp_path / "report.html").write_text(text.replace("<main>", f"<main>{attack}"), encoding="utf-8")
    chromium.open(tmp_path / "report.html")
    assert chromium.ask("document.title") == "fTRI: refusal · hf_mote"
    assert any("Content Security Policy" in line for line in chromium.complaints)


def test_browser_takes_a_picture(chromium: Browser, evaluate_run: Path, tmp_path: Path) -> None:
    chromium.open(evaluate_run / "report.html")
    chromium.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of two colours, as WCAG 2 has it."""

    def luminance(color: list[float]) -> float:
        parts = [part / 255 for part in color[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_browser_shows_the_response_to_a_long_prompt_and_wraps_long_names(
    chromium: Browser, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    names = ["a" * 200, "\u202eturned"]
    rows = [{"prompt": f"{'x' * 200} {index}", "class": names[index % 2]} for index in range(6)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content * 3 }}{% endfor %}")
    ran(
        "ftri", tiny_folder, path, "--judge", "field", "--target", names[0], "--resamples", 19, "--traced", 1,
        "--max-new-tokens", 5, "--chat-template", template, "--output", tmp_path / "out",
    )  # fmt: skip
    chromium.open(tmp_path / "out" / "report.html")
    assert chromium.complaints == []
    assert chromium.ask("document.querySelectorAll('details[open] .said').length") == 2
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert chromium.ask(wide) == 0
    assert "more tokens" in chromium.ask("document.querySelector('.tokens').textContent")
