"""What was odd and is refused: values of grids, profiles of servers, seeds, cards, organisms, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from changes import BY_NAME, drop, put
from command_runs import run, said
from test_refused_inputs import both, changed

from hf_mote import MoTEConfig, load_organism
from hf_mote.commands.grid import _before, _values
from hf_mote.commands.validate import problems_in
from hf_mote.errors import ConfigError, FileFormatError
from hf_mote.serving.settings import ServingSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["model_folder"].make(tmp_path)
    return tmp_path


# Values of a grid.


@pytest.mark.parametrize("content", [b"in Rome\nin \0Bonn\n", "in Rome\n".encode("utf-16-le")])
def test_values_and_rows_that_hold_a_nul_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "values.txt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"--value place: .*values.txt: must be text, and holds a NUL"):
        _values("place", f"@{path}")
    with pytest.raises(FileFormatError, match=r"--output .*values.txt: must be text, and holds a NUL"):
        _before(path)


def test_a_byte_order_mark_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "values.txt").write_text("in Rome\nin Bonn\n", encoding="utf-8-sig")
    assert _values("place", f"@{tmp_path / 'values.txt'}") == ["in Rome", "in Bonn"]


# Profiles of a server.


@pytest.mark.parametrize(
    "fields", [{"base_model": "\ud800"}, {"provenance": {"a": ["\udfff"]}}, {"provenance": {"\ud800": 1}}]
)
def test_a_profile_whose_text_is_not_unicode_is_refused(fields: dict[str, Any]) -> None:
    profile = {**MoTEConfig(suppress=[[0, 1]]).to_dict(), **fields}
    with pytest.raises(ConfigError, match="profile 'a': holds text that is not Unicode: .*got '.ud"):
        ServingSettings.read({"profiles": {"a": profile}})
    whole = {**profile, **dict.fromkeys(fields, None), "provenance": {}, "base_model": "模型/😀"}
    assert ServingSettings.read({"profiles": {"a": whole}}).profiles["a"].config.base_model == "模型/😀"


# Seeds.


@pytest.mark.parametrize("seed", [2**32, 10**30])
def test_a_seed_that_the_training_of_an_sae_cannot_take_is_refused(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"seed: {seed}\n")
    result = run("sae", "train", "organism:refusal", "text", "--settings", settings, "--output", tmp_path / "sae")
    assert result.exit_code == 1
    assert f"settings.yaml: seed: must be a whole number (got {seed}, expected 0 to 4294967295)" in " ".join(
        said(result).split()
    )
    assert not (tmp_path / "sae").exists()


# Cards.


@pytest.mark.parametrize("named", ["org/model", ["org/other", "org/model"], None])
def test_a_card_names_the_model_of_its_config(named: Any, tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    card = tmp_path / "README.md"
    line = "" if named is None else f"base_model: {json.dumps(named)}\n"
    text = card.read_text()
    assert "base_model: org/model\n" in text
    card.write_text(text.replace("base_model: org/model\n", line, 1))
    assert problems_in(tmp_path) == []
    changed(tmp_path / "mote_config.json", put("base_model", value="org/third"))
    problems = problems_in(tmp_path)
    if named is None:
        assert problems == []
    else:
        expected = f"README.md: metadata: base_model must be the config's (got {named!r}, expected 'org/third')"
        assert problems == [expected]
    # A folder on somebody's disk, which a card cannot name.
    changed(tmp_path / "mote_config.json", put("base_model", value="model"))
    assert problems_in(tmp_path) == []


# Recipes.


@pytest.mark.parametrize("value", ["", " ", 7, 0, 0.5, "7", "10.5", "model..mlp", "model.layers.3 ", ".mlp", "a b.c"])
def test_a_hookpoint_that_is_no_name_is_a_problem_of_a_recipe(value: Any, tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**yaml.safe_load(path.read_text()), "hookpoint": value}))
    (problem,) = problems_in(tmp_path)
    assert problem.startswith("recipe.yaml: hookpoint: must name a place of a model, such as model.layers.10.output")
    assert f"(got {value!r})" in problem


@pytest.mark.parametrize(
    "value", [None, "lm_head", "model.layers.*.mlp", "h.0.input", "model.layers.3.gate.output[1]"]
)
def test_a_hookpoint_of_a_recipe_that_a_model_may_have_is_taken(value: Any, tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**yaml.safe_load(path.read_text()), "hookpoint": value}))
    assert problems_in(tmp_path) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "top-tokens", "experts", "adapt", "steer"])
def test_an_empty_hookpoint_is_not_taken_for_none(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = run("sae", command, "organism:refusal", "a", "b", "--hookpoint", "", "--output", "c")
    assert result.exit_code == 2
    assert "'--hookpoint': must name a place of a model" in said(result)


# Organisms.


@pytest.mark.parametrize("theta", [[None], 1e306, 10000.0, True])
def test_an_organism_whose_config_has_another_rotary_base_is_refused(theta: Any, tmp_path: Path) -> None:
    BY_NAME["organism"].make(tmp_path)
    changed(tmp_path / "config.json", put("rope_parameters", "rope_theta", value=theta))
    with pytest.raises(FileFormatError, match="config.json: rope_parameters: must be the recipe's"):
        load_organism(str(tmp_path))
    for whole in ({}, {"rope_theta": 1000000, "rope_type": "default", "more": 1}, None):
        changed(tmp_path / "config.json", put("rope_parameters", value=whole))
        assert load_organism(str(tmp_path)).planted


@pytest.mark.parametrize(
    "change",
    [
        put("clean_up_tokenization_spaces", value=True),
        put("clean_up_tokenization_spaces", value="false"),
        put("clean_up_tokenization_spaces", value=0),
        put("model_max_length", value=8),
        put("model_max_length", value=1e30),
        put("padding_side", value="right"),
        put("eos_token", value="<|pad|>"),
        put("pad_token", value="<|end|>"),
        put("bos_token", value="<|user|>"),
        put("extra_special_tokens", value=["<|user|>"]),
        drop("extra_special_tokens"),
    ],
)
def test_an_organism_whose_tokenizer_says_otherwise_is_refused(change: Callable[[Any], Any], tmp_path: Path) -> None:
    BY_NAME["organism"].make(tmp_path)
    changed(tmp_path / "tokenizer_config.json", change)
    with pytest.raises(FileFormatError, match=r"tokenizer_config.json: \w+: must be that of all organisms .got "):
        load_organism(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [drop("model_max_length"), drop("clean_up_tokenization_spaces"), put("name_or_path", value="elsewhere")],
)
def test_an_organism_whose_tokenizer_says_less_is_read(change: Callable[[Any], Any], tmp_path: Path) -> None:
    BY_NAME["organism"].make(tmp_path)
    changed(tmp_path / "tokenizer_config.json", change)
    assert load_organism(str(tmp_path)).planted


# Tokenizers.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("eos_token", value="<eos>x"), r"eos_token: must be a token of the model \(got 101, .* from 0 to 100"),
        (put("model_max_length", value=[5]), r"model_max_length: must be a number \(got \[5\]"),
        (put("model_max_length", value="5"), r"model_max_length: must be a number \(got '5'"),
        (put("clean_up_tokenization_spaces", value="false"), "clean_up_tokenization_spaces: must be a truth value"),
        (put("clean_up_tokenization_spaces", value=-1e308), "clean_up_tokenization_spaces: .*expected true or false"),
    ],
)
def test_a_field_of_a_tokenizer_that_is_something_else_is_refused(
    change: Callable[[Any], Any], reason: str, folder: Path
) -> None:
    changed(folder / "tokenizer_config.json", change)
    for load in both(folder):
        with pytest.raises(FileFormatError, match=f"tokenizer_config.json: {reason}"):
            load()


@pytest.mark.parametrize(
    "change",
    [
        put("eos_token", value=None),
        put("model_max_length", value=None),
        put("model_max_length", value=1e30),
        put("clean_up_tokenization_spaces", value=True),
        lambda _: {},
    ],
)
def test_a_field_of_a_tokenizer_may_be_left_out(change: Callable[[Any], Any], folder: Path) -> None:
    changed(folder / "tokenizer_config.json", change)
    for load in both(folder):
        assert load().tokenizer("Hi").input_ids
