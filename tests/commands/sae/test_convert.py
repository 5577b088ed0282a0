"""`hf-mote sae convert`, typed as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_saes import HIDDEN, TinySAE, activations
from typer.testing import CliRunner

from hf_mote import TopKSAEModel, export_sae, load_sae
from hf_mote.cli import app


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sae", "convert", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_sae(TinySAE("topk", "autoencoder").model(), tmp_path / "in" / "layers.3", "sparsify")
    return tmp_path


def test_convert_to_our_own_format_and_on_to_another(folder: Path) -> None:
    code, output = run(folder / "in" / "layers.3", folder / "ours", "--to", "hf_mote")
    assert (code, output[:22]) == (0, "TopKSAEModel of 40 lat")
    sae = TopKSAEModel.from_pretrained(folder / "ours")
    assert sae.config.hookpoint == "model.layers.3"
    assert run(folder / "ours", folder / "out", "--to", "saelens", "--from", "hf_mote")[0] == 0
    batch = activations(20, HIDDEN)
    assert torch.equal(load_sae(folder / "out").encode(batch), sae.encode(batch))


def test_convert_takes_a_subfolder(folder: Path) -> None:
    assert run(folder / "in", folder / "out", "--to", "saelens", "--subfolder", "layers.3")[0] == 0
    assert (folder / "out" / "cfg.json").exists()


def test_convert_says_what_is_not_held(tmp_path: Path) -> None:
    TinySAE("mutual_choice", "autoencoder").model().save_pretrained(tmp_path / "ours")
    code, output = run(tmp_path / "ours", tmp_path / "out", "--to", "saelens")
    assert code == 0
    assert (
        "Not held by the format, of training: the selection in training: mutual_choice_sae is read as jumprelu_sae"
        in output
    )
    assert "zipf_exponent = 0.7" in output


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("in/layers.3", ["--to", "saelen"], "--to: unknown name (got 'saelen'"),
        ("in/layers.3", ["--to", "saelens", "--from", "saelens"], "sae_weights.safetensors"),
        (
            "in",
            ["--to", "saelens"],
            "its subfolders do (got layers.3). Say which one is meant, by subfolder (--subfolder",
        ),
        ("in", ["--to", "saelens", "--subfolder", "layers.4"], "holds no weights of a sparse autoencoder"),
        ("in/layers.3", ["--to", "gemma_scope"], "is not written"),
        ("nowhere/at/all", ["--to", "saelens"], "Check the path"),
    ],
)
def test_convert_failure_is_one_message_and_leaves_nothing(
    folder: Path, source: str, options: list[str], reason: str
) -> None:
    code, output = run(folder / source, folder / "out", *options)
    assert code == 1
    assert reason in output
    assert "Traceback" not in output
    assert not (folder / "out").exists()


def test_convert_into_a_folder_of_another_format_is_refused(folder: Path) -> None:
    code, output = run(folder / "in" / "layers.3", folder / "in" / "layers.3", "--to", "saelens")
    assert code == 1
    assert "sae.safetensors" in output


def test_convert_takes_one_file_of_several_and_writes_a_card(tmp_path: Path) -> None:
    sae = TinySAE("relu", "transcoder").model(
        output_size=HIDDEN, base_model="Qwen/Qwen3-4B", hookpoint="model.layers.4.mlp.input", output_hookpoint=None
    )
    for layer in (4, 5):
        sae.config.hookpoint = f"model.layers.{layer}.mlp.input"
        export_sae(sae, tmp_path / "set", "circuit_tracer")
    code, output = run(tmp_path / "set", tmp_path / "a", "--to", "saelens")
    assert (code, "by file (--file" in output) == (1, True)
    assert run(tmp_path / "set", tmp_path / "a", "--to", "saelens", "--file", "layer_5.safetensors", "--card")[0] == 0
    assert "model.layers.5.mlp.input" in (tmp_path / "a" / "README.md").read_text()
    assert load_sae(tmp_path / "a").config.layer == 5


def test_formats_lists_what_is_read_and_written() -> None:
    result = CliRunner().invoke(app, ["sae", "formats"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("qwen_scope", "[0-9].pt", "8,784", "circuit-tracer", "nothing: latents depend"):
        assert word in result.output
    markdown = CliRunner().invoke(app, ["sae", "formats", "--markdown"])
    assert markdown.output.startswith("| format | files | public SAEs |")


def test_formats_cuts_no_name_in_a_narrow_terminal() -> None:
    from hf_mote.sae.convert.registry import FORMATS

    result = CliRunner().invoke(app, ["sae", "formats"], env={"COLUMNS": "80"})
    assert all(name in result.output for name in FORMATS)
