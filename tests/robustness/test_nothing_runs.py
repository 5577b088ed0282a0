"""No folder can run code, ask on the standard input, reach a kernel loader or lead to files outside it."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import run, said
from tiny_models import tiny_model, tiny_tokenizer
from tiny_saes import TinySAE
from transformers import AutoConfig, AutoModel

from hf_mote import SAEModel, TopKSAEConfig, TopKSAEModel, load_organism, load_sae
from hf_mote.commands.model import Organisms, load_subject
from hf_mote.errors import FileFormatError, HFMoTEError, UnsupportedError

SAE = TinySAE("topk", "autoencoder")


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*args: Any) -> str:
        raise AssertionError(f"somebody was asked: {args}")

    monkeypatch.setattr(builtins, "input", ask)


@pytest.fixture
def ran_marker(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


def with_code(folder: Path, marker: Path, **config: Any) -> Path:
    """Give a folder a module that leaves a mark where it runs, and a config that names it."""
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import PreTrainedConfig, PreTrainedModel\n"
    code += "class Config(PreTrainedConfig):\n    model_type = 'evil'\nclass Model(PreTrainedModel):\n    pass\n"
    (folder / "evil.py").write_text(code)
    path = folder / "config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    classes = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
    path.write_text(json.dumps({**known, "auto_map": classes, **config}))
    return folder


def edited(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.fixture
def sae_folder(tmp_path: Path) -> Path:
    SAE.model().save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def test_sae_folder_of_an_unknown_type_runs_no_code(sae_folder: Path, ran_marker: Path, tmp_path: Path) -> None:
    with_code(sae_folder, ran_marker, model_type="evil")
    for load in (SAEModel.from_pretrained, TopKSAEModel.from_pretrained, load_sae):
        with pytest.raises(HFMoTEError):
            load(sae_folder)
    result = run("sae", "convert", sae_folder, tmp_path / "out", "--to", "saelens")
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert not ran_marker.exists()


def test_sae_folder_of_a_known_type_loads_and_runs_no_code(sae_folder: Path, ran_marker: Path) -> None:
    with_code(sae_folder, ran_marker)
    for load in (SAEModel.from_pretrained, TopKSAEModel.from_pretrained, load_sae, AutoModel.from_pretrained):
        sae = load(sae_folder)
        assert type(sae) is TopKSAEModel
        assert not hasattr(sae.config, "auto_map")
    assert not ran_marker.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": 3},
        {"attn_implementation": "somebody/kernels"},
        {"_attn_implementation": "somebody/kernels"},
        {"experts_implementation": "somebody/kernels"},
        {"transformers_weights": "../other/model.safetensors"},
        {"fusion_config": {"patch_embeddings": True}},
        {"per_layer_config": {}},
        {"id2label": {"a": 1}},
        {"num_labels": 10**9},
        {"output_attentions": True},
        {"rope_scaling": 1, "rope_theta": 1},
        {"dtype": "float8_e4m3fn"},
        {"dtype": "uint8"},
        {"dtype": "complex64"},
        {"dtype": "float33"},
        {"dtype": 16},
        {"dtype": ["float32"]},
        {"torch_dtype": {"": "float32"}},
        {"torch_dtype": "int64"},
        {"architectures": 3},
        {"architectures": [["TopKSAEModel"]]},
        {"transformers_version": [5]},
        {"from_pretrained": 1},
        {"__class__": "x"},
    ],
    ids=str,
)
def test_sae_config_that_says_more_than_an_sae_is_refused(fields: dict[str, Any], sae_folder: Path) -> None:
    edited(sae_folder, **fields)
    key = next(iter(fields)).replace("torch_dtype", "dtype")
    for load in (SAEModel.from_pretrained, TopKSAEModel.from_pretrained, load_sae, TopKSAEConfig.from_pretrained):
        with pytest.raises(HFMoTEError, match=key):
            load(sae_folder)
    if "dtype" not in key:
        with pytest.raises(HFMoTEError, match=key):
            AutoConfig.from_pretrained(sae_folder)


def test_sae_folder_with_an_adapter_is_refused_and_its_base_is_not_loaded(sae_folder: Path, tmp_path: Path) -> None:
    (sae_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/other"}')
    for load in (SAEModel.from_pretrained, TopKSAEModel.from_pretrained, load_sae, AutoModel.from_pretrained):
        with pytest.raises(FileFormatError, match=r"holds an adapter_config\.json"):
            load(sae_folder)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    SAE.model().save_pretrained(tmp_path / "sharded", max_shard_size="1KB")
    return tmp_path / "sharded"


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "name", ["../other/{}", "/{}", "./{}", "sub/{}", "..\\{}", "", "x.bin", 3, None, "a\0.safetensors"]
)
def test_sae_index_that_leads_out_of_its_folder_is_refused(sharded: Path, tmp_path: Path, name: Any) -> None:
    shard = next(iter(json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"].values()))
    for place in ("other", "sharded/sub"):
        (tmp_path / place).mkdir()
        shutil.copy(sharded / shard, tmp_path / place)
    change_index(sharded, lambda names: names.update(b_dec=name.format(shard) if isinstance(name, str) else name))
    with pytest.raises(FileFormatError, match=r"weight_map\.b_dec: must be a file of this folder"):
        SAEModel.from_pretrained(sharded)


def test_sae_index_that_is_not_what_the_shards_hold_is_refused(sharded: Path) -> None:
    first, *_, last = sorted(path.name for path in sharded.glob("*.safetensors"))
    change_index(sharded, lambda names: names.update(b_dec=first if names["b_dec"] != first else last))
    with pytest.raises(FileFormatError, match=r"weight_map: is not what .* holds .got b_dec"):
        SAEModel.from_pretrained(sharded)
    change_index(sharded, lambda names: names.update(b_dec="missing.safetensors"))
    with pytest.raises(FileFormatError, match=r"holds no missing\.safetensors"):
        SAEModel.from_pretrained(sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(FileFormatError, match="weight_map: names no files"):
        SAEModel.from_pretrained(sharded)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_latents": 10**12},
        {"hidden_size": 10**12},
        {"num_latents": 10**400},
        {"output_size": 10**12, "subtract_decoder_bias": False},
        {"output_size": 12, "skip_connection": True},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_sae_config_larger_than_its_weights_asks_for_no_memory(
    fields: dict[str, Any], sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(sae_folder, **fields)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("asked for memory"))
    for load in (SAEModel.from_pretrained, load_sae):
        with pytest.raises(FileFormatError, match="wrong shape|missing keys|must be a finite number"):
            load(sae_folder)


# Language models.


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_model("mixtral").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_model_folder_runs_no_code_unless_told_to(model_folder: Path, ran_marker: Path, tmp_path: Path) -> None:
    with_code(model_folder, ran_marker, model_type="evil")
    with pytest.raises(UnsupportedError, match="--trust-remote-code"):
        load_subject(str(model_folder), Organisms())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    for command in (
        ["ftri", model_folder, prompts, "--judge", "regex:x"],
        ["ftri", "organism:refusal", prompts, "--judge", "lm:So?", "--judge-model", model_folder],
        ["attribute", model_folder, prompts, "--target", "x", "--baseline", "y"],
        ["routes", model_folder, prompts, "--target", "x", "--baseline", "y"],
    ):
        result = run(*command, "--output", tmp_path / "out")
        assert result.exit_code == 1, result.output
        assert "--trust-remote-code" in said(result)
    assert not ran_marker.exists()
    # The user's own model, and the user's own word.
    with pytest.raises(UnsupportedError):
        load_subject(str(model_folder), Organisms(), trust_remote_code=True)
    assert ran_marker.exists()


def test_tokenizer_folder_runs_no_code(model_folder: Path, ran_marker: Path) -> None:
    with_code(model_folder, ran_marker)
    path = model_folder / "tokenizer_config.json"
    data = json.loads(path.read_text())
    path.write_text(
        json.dumps({**data, "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}})
    )
    with suppress(HFMoTEError):
        load_subject(str(model_folder), Organisms())
    assert not ran_marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_model_that_names_kernels_of_a_repository_is_refused(model_folder: Path, key: str) -> None:
    edited(model_folder, **{key: "somebody/kernels@main:fast"})
    with pytest.raises(UnsupportedError, match=f"{key}: names kernels of a repository.*somebody/kernels"):
        load_subject(str(model_folder), Organisms())
    edited(model_folder, **{key: "eager"})
    load_subject(str(model_folder), Organisms())


def test_report_of_a_trusted_model_says_so(model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\nd\n")
    quick = ["--judge", "regex:[a-m]", "--max-new-tokens", "2", "--resamples", "0", "--traced", "0"]
    for flag in ([], ["--trust-remote-code"]):
        output = tmp_path / f"out{len(flag)}"
        result = run("ftri", model_folder, prompts, *quick, *flag, "--output", output)
        assert (output / "report.json").is_file(), result.output
        provenance = json.loads((output / "report.json").read_text())["provenance"]
        assert ("allowed by --trust-remote-code" in provenance.get("code of the model", "")) is bool(flag)


def test_organism_folder_runs_no_code(tmp_path: Path, ran_marker: Path) -> None:
    shipped = Path(load_organism("refusal").model.config.name_or_path)
    folder = Path(shutil.copytree(shipped, tmp_path / "organism"))
    with_code(folder, ran_marker, model_type="evil")
    with pytest.raises(FileFormatError, match="model_type: must be the recipe's"):
        load_organism(str(folder))
    assert not ran_marker.exists()
