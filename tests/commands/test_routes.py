"""`hf-mote routes`: other experts at one token, what they change, and what is refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import REFUSAL, ran, run, said
from html_pages import parse_page
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import CounterfactualRoutes, counterfactual_routes, load_organism
from hf_mote.commands.prompts import typed_prompts
from hf_mote.commands.routes import _check_tokens
from hf_mote.errors import DataError

PROMPT = "What took place in 1809 in Vienna?"
PAIR = ["--target", "b", "--baseline", "a"]  # the tiny model prefers the target, and one of six routes turns that


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def cells(result: Any) -> list[list[str]]:
    """The rows of the table that was printed."""
    lines = [line for line in result.output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_routes_of_an_organism_name_what_is_planted_and_are_read_again(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    answer = organism.answers[PROMPT]
    words = ["routes", "organism:refusal", "--prompt", PROMPT, "--target", REFUSAL, "--baseline", answer]
    result = ran(*words, "--top", 3, "--output", tmp_path / "out")
    expected = counterfactual_routes(
        organism.model, organism.tokenizer, PROMPT, REFUSAL, answer, progress=False, batch_size=8
    )
    found = CounterfactualRoutes.from_pretrained(tmp_path / "out")
    assert found == expected
    best = found.routes[0]
    assert [best.layer, *best.experts_out] in [list(pair) for pair in organism.planted]
    rows = cells(result)
    assert len(rows) == 3
    assert rows[0][:3] == [str(best.layer), str(best.experts_out[0]), str(best.experts_in[0])]
    assert rows[0][-1] == "no"
    figures = report(tmp_path / "out")
    assert figures["found"] is False
    assert figures["verdict"] in said(result)
    told = f"None of {len(found.routes)} other routes of token {found.position} ('<|assistant|>') turns that"
    assert told in figures["verdict"]
    (one,) = figures["prompts"]
    assert (one["prompt"], one["target"], one["baseline"]) == (PROMPT, REFUSAL, answer)
    assert (one["position"], one["token"]) == (found.position, "<|assistant|>")
    assert one["preference"] == found.score
    assert [route["effect"] for route in one["first"]] == [route.effect for route in found.routes[:3]]
    assert one["turning"] == []
    assert figures["files"].keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert figures["provenance"]["command"].startswith("hf-mote routes organism:refusal --prompt ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_routes_that_turn_the_preference_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    result = ran("routes", tiny_folder, "--prompt", "what is", *PAIR, "--output", tmp_path / "out")
    found = CounterfactualRoutes.from_pretrained(tmp_path / "out")
    assert found == counterfactual_routes(tiny_model("mixtral"), tiny_tokenizer(), "what is", "b", "a", progress=False)
    figures = report(tmp_path / "out")
    assert figures["found"] is True
    assert "finds the target likelier than the baseline, by 1.387 nats. 1 of 6 other routes" in figures["verdict"]
    assert "turns that; the largest change is" in figures["verdict"]
    (turning,) = figures["prompts"][0]["turning"]
    assert found.score + turning["effect"] < 0 < found.score
    marked = {tuple(row[:3]): row[-1] for row in cells(result)}
    assert [places for places, turns in marked.items() if turns == "yes"] == [
        (str(turning["layer"]), str(turning["experts_out"][0]), str(turning["experts_in"][0]))
    ]
    page = parse_page((tmp_path / "out" / "report.html").read_text())
    assert page.one("verdict").text == figures["verdict"]


def test_routes_of_a_file_have_a_folder_for_each_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [
        {"question": "what is", "target": "b", "no": "a"},
        {"question": [{"role": "user", "content": "a bb c"}], "target": "x", "no": "y"},
    ]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["routes", tiny_folder, source, "--prompt-field", "question", "--baseline-field", "no"]
    chosen = ["--layers", "2,1", "--position", "0", "--candidates", "2", "--system-prompt", "s"]
    result = ran(*words, *chosen, "--output", tmp_path / "out")
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    figures = report(tmp_path / "out")
    largest = []
    for number, row in enumerate(rows, start=1):
        expected = counterfactual_routes(
            model, tokenizer, row["question"], row["target"], row["no"], position=0, candidates=2, layers=[1, 2],
            system_prompt="s", progress=False,
        )  # fmt: skip
        place = figures["prompts"][number - 1]["file"]
        assert place == f"prompts/{number}/counterfactual_routes.json"
        assert CounterfactualRoutes.from_pretrained((tmp_path / "out" / place).parent) == expected
        assert {route.layer for route in expected.routes} == {1, 2}
        assert len(expected.routes) == 2 * 2 * 2
        largest += [(abs(route.effect), str(number)) for route in expected.routes]
    # Those of the last layer change nothing: what they give at this token is read nowhere.
    in_order = sorted(largest, key=lambda pair: -pair[0])
    assert [row[0] for row in cells(result)] == [number for _, number in in_order[:10]]
    assert sum(effect < 1e-4 for effect, _ in largest) == 8
    assert "of 2 prompts another route of the token turns the preference" in figures["verdict"]


def test_routes_under_quiet_are_the_result_alone(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["routes", tiny_folder, "--prompt", "a", "--prompt", "b c", *PAIR, "--output", tmp_path / "out"]
    result = ran(*words, "--quiet")
    assert {row[0] for row in cells(result)} == {"1", "2"}
    assert "Report: " in said(result)
    assert "rerouting" not in said(result)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--position", "99"], "--position: --prompt: prompt 1 has no such token (got 99, expected -9 to 8)"),
        (["--position", "-10"], "--position: --prompt: prompt 1 has no such token (got -10"),
        (["--layers", "1,7"], "--layers: unknown name (got 7, expected one of 0, 1, 2)"),
        (["--layers", "-1"], "--layers: must be layers, counted from 0"),
        (["--layers", "one"], "--layers: must be a list of numbers"),
        (["--target", "é", "--baseline", "☃"], "--target and --baseline are the same tokens"),
        (["--template-arg", "nosuch=1"], "--template-arg"),
        (["--limit", "3"], "--limit: is for PROMPTS, and --prompt is given"),
    ],
)
def test_what_the_config_and_the_tokenizer_tell_is_refused_before_weights_are_read(
    words: list[str], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    result = run("routes", tiny_folder, "--prompt", "what is", *PAIR, *words, "--output", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert message in said(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unread")
def test_model_without_other_routes_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    for saved in (tiny_model("mixtral", num_experts_per_tok=8), tiny_tokenizer()):
        saved.save_pretrained(tmp_path / "model")
    result = run("routes", tmp_path / "model", "--prompt", "what is", *PAIR, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "--layers: layer 0 chooses all of its experts (got 8 of 8). Give --layers without it." in said(result)


def test_position_is_refused_by_the_prompt_that_lacks_it(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("a long one\nb\n")
    result = run("routes", tiny_folder, source, *PAIR, "--position", 5, "--output", tmp_path / "out")
    assert "prompts.txt: prompt 2 has no such token (got 5, expected -3 to 2)" in said(result)


def test_response_without_a_token_is_refused_by_its_option() -> None:
    asked = typed_prompts(["a"])

    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1] if text == "b" else []}

    with pytest.raises(DataError, match="prompt 1: the response that --baseline gives has no token"):
        _check_tokens(asked, [[1]], tokenizer, ["b"], ["?"], -1)  # type: ignore[arg-type]


def test_typed_prompt_that_is_none_is_refused_by_its_number() -> None:
    with pytest.raises(DataError, match=r"^--prompt, field 'prompt': must "):
        typed_prompts([" "])
    with pytest.raises(DataError, match=r"^--prompt, number 2, field 'prompt': holds text that is not Unicode"):
        typed_prompts(["a", "\ud800"])
