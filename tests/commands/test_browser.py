"""The reports in a real browser: they open from the disk, ask for nothing, complain of nothing, and can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from command_runs import ran
from html_pages import check_page

from hf_mote import ExpertRanking, FTRIResult, LatentExpertMap, MoTEConfig

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(params=["ftri_run", "attribute_run", "latents_run", "evaluate_run", "sweep_run", "hostile_run"])
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
    assert chromium.ask("document.scripts.length") == len(tree.all("script"))
    for name in ("figure", "image", "circle"):
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
    boxes = chromium.ask("[...document.querySelectorAll('svg.chart')].map(s => [s.clientWidth, s.clientHeight])")
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


def table_of(chromium: Browser) -> list[list[str]]:
    rows = "[...document.querySelectorAll('#experts-table tbody tr')]"
    found: list[list[str]] = chromium.ask(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")
    return found


def numbers(rows: list[list[str]], column: int) -> list[float]:
    return [float(row[column].replace("−", "-").replace("< ", "").split(" to ")[0]) for row in rows]


def test_browser_table_of_experts_begins_as_it_stands_in_the_page(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    tree = check_page((ftri_run / "report.html").read_text(encoding="utf-8"))
    written = [[cell.text for cell in row.children] for row in tree.one("experts-table").all("tr")[1:]]
    assert table_of(chromium) == written
    assert len(written) == 20
    assert chromium.ask("document.querySelector('.without-script').offsetHeight") == 0


@pytest.mark.parametrize("column", range(8))
def test_browser_table_of_experts_sorts_by_each_column_both_ways(
    chromium: Browser, ftri_run: Path, column: int
) -> None:
    chromium.open(ftri_run / "report.html")
    chromium.press("#show-more")
    chromium.press("#show-more")
    chromium.press("#show-more")
    head = f"#experts-table thead th:nth-child({column + 1})"
    seen = []
    for _ in range(2):
        chromium.press(f"{head} button")
        way = chromium.ask(f"document.querySelector('{head}').ariaSort")
        rows = table_of(chromium)
        assert len(rows) == 256
        if column == 0:
            values = [float(layer) * 1000 + int(number) for layer, number in (row[0].split(".") for row in rows)]
        else:
            values = numbers(rows, column)
        assert values == sorted(values, reverse=way == "descending")
        seen.append(way)
    assert sorted(seen) == ["ascending", "descending"]
    assert chromium.ask("document.querySelectorAll('#experts-table [aria-sort]').length") == 1


def test_browser_table_of_experts_filters_by_layer_sign_name_and_q(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")

    def choose(field: str, change: str) -> list[list[str]]:
        chromium.ask(
            f"(f => {{ f.{change}; f.dispatchEvent(new Event('input')); }})(document.querySelector('{field}'))"
        )
        return table_of(chromium)

    assert {row[0].split(".")[0] for row in choose("#filter-layer", "value = 3")} == {"3"}
    assert chromium.ask("document.querySelector('#filter-count').textContent") == "64 found"
    assert all(row[2].startswith("−") for row in choose("#filter-sign", "value = -1"))
    chromium.press("#filter-clear")
    rows = choose("#filter-sure", "checked = true")
    assert rows
    assert max(numbers(rows, 5)) <= 0.05
    chromium.press("#filter-clear")
    assert len(choose("#filter-mark", "checked = true")) == 4
    chromium.press("#filter-clear")
    chromium.key("/")
    chromium.write("2.53")
    assert [row[0] for row in table_of(chromium)] == ["2.53"]
    chromium.ask("document.querySelector('#filter-name').select()")
    chromium.write("9")
    assert table_of(chromium) == []
    assert chromium.complaints == []


def test_browser_press_on_a_cell_shows_the_expert(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    ranking = ExpertRanking.from_pretrained(ftri_run)
    result = FTRIResult.from_pretrained(ftri_run / "imaging")
    layer, number = ranking.top(1)[0]
    map_ = "document.querySelector('#maps svg[data-series]')"
    chromium.ask(f"{map_}.scrollIntoView({{block: 'center'}})")
    left, top, width, height = chromium.ask(
        f"(b => [b.left, b.top, b.width, b.height])({map_}.getBoundingClientRect())"
    )
    x, y = left + width * (number + 0.5) / 64, top + height * (ranking.layers.index(layer) + 0.5) / 4
    chromium.move(x, y)
    assert chromium.ask("document.querySelector('.tip').textContent").startswith(f"layer {layer}, expert {number}: +")
    chromium.click(x, y)
    assert chromium.ask("location.hash") == f"#expert-{layer}.{number}"
    chromium.until("document.querySelector('#expert.open') !== null")
    panel = chromium.ask("document.querySelector('#expert').innerText")
    assert f"Layer {layer}, expert {number}" in panel
    assert "Place 1 of 256" in panel
    assert "Used more by prompts of class refusal" in panel
    for heading in (
        "Tokens per prompt, by class",
        "Effect when removed",
        "Tokens in context",
        "Prompts that go to it",
    ):
        assert heading in panel
    bars = chromium.ask("[...document.querySelectorAll('#expert .bars tr')].map(r => r.innerText.split(/\\s+/))")
    means = {name: seen.at(layer, number) for name, seen in result.maps.items()}
    assert {name: float(value) for name, value, *_ in bars} == pytest.approx(means, abs=0.051)
    assert len(chromium.ask("[...document.querySelectorAll('#expert .t')].map(t => t.textContent)")) > 3
    assert chromium.complaints == []


def test_browser_expert_has_its_latents(chromium: Browser, latents_run: Path, latent_maps: Path) -> None:
    links = LatentExpertMap.from_pretrained(latent_maps)
    layer, number = next(pair for pair in ExpertRanking.from_pretrained(latents_run).top(256) if pair[0] != 2)
    chromium.open(latents_run / "report.html")
    chromium.ask(f"location.hash = '#expert-{layer}.{number}'")
    chromium.until("document.querySelector('#expert.open') !== null")
    cells = "[...r.cells].map(c => c.textContent)"
    tables = f"[...document.querySelectorAll('#expert .latents')].map(t => [...t.rows].map(r => {cells}))"
    (predicted,) = chromium.ask(tables)  # the map by weights is of layer 2
    assert predicted[0] == ["latent", "correlation", "precision", "recall", "lift"]
    first = links.for_expert(layer, number, 5)
    assert [int(row[0]) for row in predicted[1:]] == [link.latent for link in first]
    assert predicted[1][1].replace("−", "-") == f"{first[0].value:+.4g}"
    assert predicted[1][2:] == ["6.0%", "12.0%", "0.96"]  # 3 of its 50 tokens, 3 of the 25 chosen, which are 25 of 400
    assert "over 400 tokens; SAE at model.layers.2.output" in chromium.ask(
        "document.querySelector('#expert').innerText"
    )
    assert "A latent that predicts an expert need not drive it." in chromium.ask(
        "document.querySelector('#expert').innerText"
    )
    chromium.ask(f"location.hash = '#expert-2.{number}'")
    chromium.until("document.querySelectorAll('#expert .latents').length === 2")
    assert chromium.ask("document.querySelector('#expert').innerText").count("Latents that") == 2
    assert chromium.complaints == []


def test_browser_keys_alone_reach_an_expert_and_go_back(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    chromium.ask("document.querySelector('#maps svg[data-series]').focus()")
    chromium.key("ArrowRight")
    chromium.key("ArrowLeft")
    chromium.key("ArrowLeft")
    chromium.key("Enter")
    first = chromium.ask("document.querySelector('#experts-table tbody a') && location.hash")
    layer, number = first.removeprefix("#expert-").split(".")
    chromium.until("document.querySelector('#expert.open') !== null")
    assert f"Layer {layer}, expert {number}" in chromium.ask("document.querySelector('#expert h2').textContent")
    assert chromium.ask("document.activeElement.id") == "expert"
    chromium.key("ArrowRight")
    assert chromium.ask("location.hash") != first
    chromium.key("Escape")
    assert chromium.ask("getComputedStyle(document.querySelector('#expert')).display") == "none"
    assert chromium.ask("document.activeElement.dataset.series") == "score:0"
    chromium.ask("history.back()")
    chromium.until("document.querySelector('#expert.open') !== null")


def test_browser_shows_both_signs_and_links_lead_to_experts(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    tree = check_page((ftri_run / "report.html").read_text(encoding="utf-8"))
    against = [row.children[0].text for row in tree.all("div", "without-script")[0].all("tr")[1:]]
    assert len(against) == 10
    chromium.ask(f"location.hash = 'expert-{against[0]}'")
    chromium.until("document.querySelector('#expert .sign.against') !== null")
    assert "Used less by prompts of class" in chromium.ask("document.querySelector('#expert .sign').textContent")
    others = "document.querySelector('#expert .row a.expert')"
    if chromium.ask(f"{others} !== null"):
        name = chromium.ask(f"{others}.textContent")
        chromium.ask(f"{others}.click()")
        chromium.until(f"location.hash === '#expert-{name}'")
    chromium.ask("document.querySelector('#tokens summary a.expert').click()")
    chromium.until("document.querySelector('#expert-before').disabled")
    assert chromium.ask("document.querySelectorAll('#tokens details[open]').length") == 1


def test_browser_config_is_copied_and_follows_the_reader(chromium: Browser, ftri_run: Path) -> None:
    chromium.open(ftri_run / "report.html")
    saved = MoTEConfig.from_pretrained(ftri_run)
    shown = "document.querySelector('#config-json').textContent"
    assert MoTEConfig.from_dict(json.loads(chromium.ask(shown))) == saved
    chromium.ask("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    chromium.press("#copy-config")
    chromium.until("document.querySelector('#copy-config').textContent === 'Copied'")
    name = ".".join(map(str, saved.suppress[0]))
    chromium.ask(f"location.hash = 'expert-{name}'")
    chromium.until("document.querySelector('#expert-config') !== null")
    chromium.press("#expert-config")
    edited = MoTEConfig.from_dict(json.loads(chromium.ask(shown)))
    assert edited.suppress == saved.suppress[1:]
    assert edited.provenance["edited"] == "by hand, in the report"
    chromium.press("#expert-config")
    assert MoTEConfig.from_dict(json.loads(chromium.ask(shown))).suppress == saved.suppress


def test_browser_table_of_settings_sorts(chromium: Browser, sweep_run: Path) -> None:
    chromium.open(sweep_run / "report.html")
    head = "#settings thead th:nth-child(3)"
    rates = "[...document.querySelectorAll('#settings tbody tr')].map(row => parseFloat(row.cells[2].textContent))"
    chromium.press(f"{head} button")
    falling = chromium.ask(rates)
    assert falling == sorted(falling, reverse=True)
    chromium.press(f"{head} button")
    assert chromium.ask(rates) == falling[::-1]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_browser_expert_view_fits_its_window(chromium: Browser, hostile_run: Path, width: int, dark: bool) -> None:
    chromium.open(hostile_run / "report.html", width=width, dark=dark)
    title = chromium.ask("document.title")
    chromium.ask("document.querySelector('#experts-table a.expert').click()")
    chromium.until("document.querySelector('#expert.open') !== null")
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    assert (
        chromium.ask("document.querySelector('#expert').scrollWidth - document.querySelector('#expert').clientWidth")
        <= 0
    )
    assert chromium.ask("document.querySelectorAll('#expert script, #expert img').length") == 0
    assert chromium.ask("document.title") == title
    assert chromium.complaints == []


def test_browser_narrow_page_cuts_no_axis_title_and_splits_no_word(chromium: Browser, sweep_run: Path) -> None:
    chromium.open(sweep_run / "report.html", width=390)
    sides = "[...document.querySelectorAll('.plot p')].map(p => [p.scrollWidth - p.clientWidth, p.innerText.length])"
    assert all(over <= 0 and length > 3 for over, length in chromium.ask(sides))
    # A word that is broken has two boxes.
    broken = """[...document.querySelectorAll('th, td.n')].flatMap(cell => {
      const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
      while (walker.nextNode()) for (const match of walker.currentNode.data.matchAll(/[^\\s]+/g)) {
        const range = document.createRange();
        range.setStart(walker.currentNode, match.index);
        range.setEnd(walker.currentNode, match.index + match[0].length);
        if (range.getClientRects().length > 1 && match[0].length < 16) found.push(match[0]);
      }
      return found;
    })"""
    assert chromium.ask(broken) == []


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
