"""Files of settings: what is wrong with them is said all at once, by file and key, and what they set is named so."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_runs import run, said

from hf_mote import TopKSAEConfig, TopKSAEModel
from hf_mote.commands.names import ARCHITECTURES
from hf_mote.commands.sae.settings import wrong_architecture


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "texts.jsonl").write_text('{"text": "a few words of text"}\n' * 20, encoding="utf-8")
    TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=8, k=2)).save_pretrained(folder / "sae")
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=8, k=2, hookpoint="model.layers.77"))
    sae.save_pretrained(folder / "placed")
    return folder


def trained(place: Path, model: object, settings: str, *more: object) -> tuple[int, str]:
    """Exit code and output of `sae train` with a file of settings."""
    file = place / "settings.yaml"
    file.write_text(settings, encoding="utf-8")
    options = ["--output", place / "out", "--settings", file, *more]
    result = run("sae", "train", model, place / "texts.jsonl", *options)
    return result.exit_code, said(result)


def test_settings_with_five_wrong_things_show_five(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, told = trained(place, "model", "tokenz: 3\ntokens: many\nbatch: 0\nk: [1]\nforce: 3\n")
    assert code == 2
    file = f"{place / 'settings.yaml'}: "
    assert told.count(file) == 5
    assert f"{file}unknown name (got 'tokenz'" in told
    assert "Did you mean 'tokens'?" in told
    for problem in (
        "tokens: must be a valid integer (got 'many')",
        "batch: must be greater than or equal to 1 (got 0)",
        "k: must be one value (got [1])",
        "force: must be true or false (got 3)",
    ):
        assert file + problem in told


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("tokens: true", "tokens: must be a value that is neither true nor false (got True)"),
        ("option: {l1_coefficient: 1}", "option: must be a list (got {'l1_coefficient': 1})"),
        ("hookpoint: {a: b}", "hookpoint: must be one value (got {'a': 'b'})"),
        ("run-folder: a\nrun_folder: b", "run-folder: is given twice (expected once)"),
        ("settings: other.yaml", "unknown name (got 'settings'"),
        ("- tokens", "holds no options (expected lines such as tokens: 20000)"),
    ],
)
def test_settings_of_another_kind_are_refused_by_file_and_key(
    place: Path, settings: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, told = trained(place, "model", settings)
    assert code == 2
    assert f"{place / 'settings.yaml'}: {problem}" in told


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("architecture: topc", "architecture: unknown name (got 'topc'"),
        ("architecture: relu\nk: 4", "k: relu has none"),
        ("option: [x]", "option: must be a name and a value (got 'x'"),
        ("option: [l2_coefficient=1]", "option: unknown name (got 'l2_coefficient'"),
        ("option: [k=1]", "option k: has an option of its own (expected --k)"),
        ("dtype: int8", "dtype: unknown name (got 'int8'"),
    ],
)
def test_error_names_the_file_for_what_came_from_it_and_the_option_for_what_was_typed(
    place: Path, settings: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, told = trained(place, "model", settings)
    assert (code, told.startswith(f"{place / 'settings.yaml'}: {problem}")) == (1, True), told
    typed = [line.partition(": ") for line in settings.replace("[", "").replace("]", "").splitlines()]
    options = [word for key, _, value in typed for word in (f"--{key}", value)]
    code, told = trained(place, "model", "seed: 3", *options)
    assert (code, told.startswith(f"--{problem}")) == (1, True), told


def test_hookpoint_is_named_by_where_it_came_from(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("hookpoint: model.layers.99\n", encoding="utf-8")
    words = ["sae", "evaluate", tiny_folder, place / "sae", place / "texts.jsonl"]
    nowhere = said(run(*words))
    assert "--hookpoint: the SAE does not say where it belongs. Give --hookpoint, such as model.layers.10" in nowhere
    assert "--hookpoint: unknown name (got 'model.layers.98'" in said(run(*words, "--hookpoint", "model.layers.98"))
    told = said(run(*words, "--settings", file)).replace(" ", "")
    assert f"{file}:hookpoint:unknownname(got'model.layers.99'" in told
    words[3] = place / "placed"
    assert "TopKSAEModel.config.hookpoint: unknown name (got 'model.layers.77'" in said(run(*words))


def test_every_architecture_takes_its_own_fields_and_no_others() -> None:
    for name, own in ARCHITECTURES.items():
        assert wrong_architecture(name, None, [field for field in own if field != "k"]) == []
        assert len(wrong_architecture(name, 4, ["hidden_size"])) == (1 if "k" in own else 2)


def test_an_option_may_be_named_as_on_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, told = trained(place, "model", "device-map: auto\ntokenz: 3\n")
    assert code == 2
    assert "unknown name (got 'tokenz'" in told
    assert "(got 'device-map'" not in told
