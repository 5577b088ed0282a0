"""Saving, loading, pushing, and moving between dtypes and devices: nothing changes but what was asked for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors import safe_open
from tiny_saes import ALL_SAES, SOME_SAES, TinySAE
from torch import Tensor
from transformers import AutoConfig, AutoModel

import hf_mote
from hf_mote import MoTEConfig, SAEModel
from hf_mote.errors import ConfigError, FileFormatError

every_sae = pytest.mark.parametrize("sae", ALL_SAES, ids=str)
some_saes = pytest.mark.parametrize("sae", SOME_SAES, ids=str)
FLOAT32_TENSORS = {"threshold", "density"}


def trained(sae: TinySAE, dtype: torch.dtype = torch.float32) -> SAEModel:
    """A model whose state of training is not what it starts with."""
    model = sae.model(dtype).train()
    for seed in range(3):
        model(**sae.batch(20, dtype=dtype, seed=seed))
    return model.eval()


def assert_equal_models(first: SAEModel, second: SAEModel) -> None:
    """Assert the same class, tensors and outputs, bit for bit."""
    assert type(first) is type(second)
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name
    x = torch.randn(9, first.config.hidden_size, dtype=first.W_enc.dtype)
    assert torch.equal(first.encode(x), second.encode(x))


@every_sae
def test_from_pretrained_gives_back_what_was_saved(sae: TinySAE, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = trained(sae, dtype)
        folder = tmp_path / str(dtype)
        model.save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        loaded = AutoModel.from_pretrained(str(folder))
        assert not loaded.training
        assert_equal_models(model, loaded)
        if dtype == torch.float32:
            assert_equal_models(model, SAEModel.from_pretrained(folder))
            assert_equal_models(model, type(model).from_pretrained(folder))


@some_saes
def test_from_pretrained_sharded_gives_back_what_was_saved(sae: TinySAE, tmp_path: Path) -> None:
    model = trained(sae)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_models(model, SAEModel.from_pretrained(tmp_path))


@every_sae
def test_saved_tensors_have_the_documented_names_shapes_and_dtypes(sae: TinySAE, tmp_path: Path) -> None:
    model = sae.model(torch.bfloat16)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = model.config
    shapes = {
        "W_enc": (config.num_latents, config.hidden_size),
        "b_enc": (config.num_latents,),
        "W_dec": (config.num_latents, config.decoder_size),
        "b_dec": (config.decoder_size,),
    }
    if config.skip_connection:
        shapes["W_skip"] = (config.decoder_size, config.hidden_size)
    for name, shape in shapes.items():
        assert tuple(found[name].shape) == shape
        assert found[name].dtype == torch.bfloat16
    for name in FLOAT32_TENSORS & set(found):
        assert found[name].dtype == torch.float32


@some_saes
def test_from_pretrained_dtype_casts_all_but_thresholds(sae: TinySAE, tmp_path: Path) -> None:
    model = trained(sae)
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16, "bfloat16", "float16", torch.float64):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert_cast(model, loaded, dtype)
        assert loaded.config.dtype == dtype


@some_saes
def test_moving_between_dtypes_casts_all_but_thresholds(sae: TinySAE) -> None:
    model = trained(sae)
    for dtype, move in (
        (torch.bfloat16, lambda m: m.to(torch.bfloat16)),
        (torch.float16, lambda m: m.half()),
        (torch.float64, lambda m: m.double()),
        (torch.float32, lambda m: m.half().double().float()),
        (torch.bfloat16, lambda m: m.double().bfloat16()),
        (torch.float32, lambda m: m.to("cpu")),
    ):
        moved = trained(sae)
        parameters = dict(moved.named_parameters())
        assert move(moved) is moved
        assert_cast(model, moved, dtype, through_half=True)
        assert all(value is parameters[name] for name, value in moved.named_parameters())
        batch = sae.batch(12, dtype=dtype)
        assert moved(**batch).reconstruction.dtype == dtype
        loss = moved.train()(**batch).loss
        assert bool(loss.isfinite())
        assert loss.dtype == torch.promote_types(dtype, torch.float32)


def assert_cast(before: SAEModel, after: SAEModel, dtype: torch.dtype, *, through_half: bool = False) -> None:
    """Assert that all float tensors have a dtype, and thresholds at least float32 and the very same values."""
    for name, value in before.state_dict().items():
        moved = after.state_dict()[name]
        if name in FLOAT32_TENSORS:
            assert moved.dtype == torch.promote_types(dtype, torch.float32), name
            assert torch.equal(moved.double(), value.double()), name
        elif value.is_floating_point():
            assert moved.dtype == dtype, name
            if not through_half:
                assert torch.equal(moved, value.to(dtype)), name
        else:
            assert moved.dtype == value.dtype, name
            assert torch.equal(moved, value), name


@some_saes
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_from_pretrained_device_map_gives_the_same_model(sae: TinySAE, device_map: Any, tmp_path: Path) -> None:
    model = trained(sae)
    model.save_pretrained(tmp_path)
    assert_equal_models(model, AutoModel.from_pretrained(tmp_path, device_map=device_map))


@some_saes
def test_from_pretrained_of_a_state_dict_needs_no_folder(sae: TinySAE) -> None:
    model = trained(sae)
    given = {name: value.clone() for name, value in model.state_dict().items()}
    assert_equal_models(model, type(model).from_pretrained(None, config=model.config, state_dict=given))


@some_saes
def test_from_pretrained_output_loading_info_reports_nothing_amiss(sae: TinySAE, tmp_path: Path) -> None:
    sae.model().save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, SAEModel)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@some_saes
def test_uncalibrated_model_loads_uncalibrated(sae: TinySAE, tmp_path: Path) -> None:
    model = sae.model(calibrated=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert getattr(loaded, "is_calibrated", None) == getattr(model, "is_calibrated", None)


@some_saes
def test_from_pretrained_without_state_of_training_starts_it_anew(sae: TinySAE, tmp_path: Path) -> None:
    model = trained(sae)
    lost = ("tokens_since_fired", "threshold_steps", "density", "density_tokens")
    kept = {name: value for name, value in model.state_dict().items() if name not in lost}
    model.save_pretrained(tmp_path, state_dict=dict(kept))
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, kept.get(name, torch.zeros_like(value))), name


@some_saes
def test_config_survives_saving(sae: TinySAE, tmp_path: Path) -> None:
    config = sae.config(hookpoint="model.layers.3", base_model="org/model", origin={"format": "x", "more": [1, None]})
    config.save_pretrained(tmp_path)
    for load in (AutoConfig, type(config)):
        assert load.from_pretrained(tmp_path).to_dict() == {
            **config.to_dict(),
            **{
                key: load.from_pretrained(tmp_path).to_dict()[key] for key in ("_name_or_path", "transformers_version")
            },
        }
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert type(config)(**config.to_dict()).to_dict() == config.to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hf_mote_version"] == hf_mote.__version__
    assert written["model_type"] == config.model_type
    model = sae.model()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).config.to_dict()
    for key, value in model.config.to_dict().items():
        assert key in ("_name_or_path", "transformers_version") or loaded[key] == value, key


def test_config_is_stamped_with_the_version_that_writes_it(tmp_path: Path) -> None:
    config = TinySAE("topk", "autoencoder").config(hf_mote_version="0.0.1")
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hf_mote_version == hf_mote.__version__


@some_saes
def test_from_config_makes_a_new_model_in_a_dtype(sae: TinySAE) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModel.from_config(sae.config(), dtype=dtype)
        assert model.W_enc.dtype == dtype
        rows = model.W_dec.double().norm(dim=1)
        torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=4 * torch.finfo(dtype).eps)
        for name in FLOAT32_TENSORS & set(model.state_dict()):
            assert getattr(model, name).dtype == torch.float32
        if sae.kind == "autoencoder":
            assert torch.equal(model.W_enc, model.W_dec)
        assert not bool(model.b_enc.any() | model.b_dec.any())


@some_saes
def test_push_to_hub_uploads_what_save_pretrained_writes(sae: TinySAE, hub: HubServer, tmp_path: Path) -> None:
    model = trained(sae)
    model.config.base_model = str(tmp_path / "secret" / "base")
    model.push_to_hub("sae", subfolder="layer_3", tags=["one"], license="mit", max_shard_size="2KB")
    files = hub.files("alice/sae")
    assert {"layer_3/config.json", "layer_3/README.md"} <= set(files)
    assert sum(name.endswith(".safetensors") for name in files) > 1
    assert str(tmp_path).encode() not in b"".join(hub.uploads)
    card = files["layer_3/README.md"].decode()
    assert "license: mit" in card
    assert f"- {model.config.model_type}\n" in card
    loaded = type(model).from_pretrained("alice/sae", subfolder="layer_3")
    assert loaded.config.base_model == "base"
    assert_equal_models(model, loaded)


def test_push_to_hub_something_else_as_report_is_refused(hub: HubServer) -> None:
    with pytest.raises(ConfigError, match="report: is another thing .got MoTEConfig"):
        TinySAE("topk", "autoencoder").model().push_to_hub("sae", report=MoTEConfig())
    assert hub.requests == []


def test_loading_restores_each_tensor_and_not_an_initial_value(tmp_path: Path) -> None:
    for sae in ALL_SAES:
        model = sae.model()
        with torch.no_grad():
            for index, value in enumerate(model.state_dict().values()):
                if value.is_floating_point():
                    # As a share of tokens, since densities are.
                    value.copy_((torch.rand(value.shape) + index) / (index + 1))
                elif value.ndim:
                    value.copy_(torch.randperm(len(value)))
                else:
                    value.fill_(index)
        model.save_pretrained(tmp_path)
        saved: dict[str, Tensor] = model.state_dict()
        for name, value in AutoModel.from_pretrained(tmp_path).state_dict().items():
            assert torch.equal(value, saved[name]), (sae, name)


@every_sae
def test_sae_model_from_pretrained_takes_fields_of_the_config_as_the_architecture_does(
    sae: TinySAE, tmp_path: Path
) -> None:
    trained(sae).save_pretrained(tmp_path)
    fields = {"dead_after_tokens": 7, "hookpoint": "model.layers.5"}
    for loaded in (
        SAEModel.from_pretrained(tmp_path, **fields, dtype=torch.bfloat16),
        SAEModel.from_pretrained(tmp_path, config=str(tmp_path), **fields, dtype="bfloat16"),
        type(sae.model()).from_pretrained(tmp_path, **fields, dtype=torch.bfloat16),
        AutoModel.from_pretrained(tmp_path, **fields, dtype=torch.bfloat16),
    ):
        assert (loaded.config.dead_after_tokens, loaded.config.hookpoint) == (7, "model.layers.5")
        assert loaded.W_enc.dtype == loaded.config.dtype == torch.bfloat16
    assert SAEModel.from_pretrained(tmp_path, dtype="auto").W_enc.dtype == torch.float32


def test_sae_model_from_pretrained_takes_fields_and_arguments_of_the_loader_together(tmp_path: Path) -> None:
    TinySAE("topk", "autoencoder").model().save_pretrained(tmp_path / "sub")
    model, info = SAEModel.from_pretrained(
        tmp_path, k=2, subfolder="sub", output_loading_info=True, low_cpu_mem_usage=True
    )
    assert (model.config.k, info["missing_keys"]) == (2, set())


def test_save_pretrained_replaces_an_earlier_sae_and_keeps_what_else_is_there(tmp_path: Path) -> None:
    first, second = TinySAE("topk", "autoencoder").model(), TinySAE("jumprelu", "autoencoder").model()
    first.save_pretrained(tmp_path / "sae", max_shard_size="1KB")
    for name in ("README.md", "notes/mine.txt", "model.fp16.safetensors"):
        (tmp_path / "sae" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sae" / name).write_text("mine")
    second.save_pretrained(tmp_path / "sae")
    names = sorted(path.name for path in (tmp_path / "sae").iterdir())
    assert names == ["README.md", "config.json", "model.fp16.safetensors", "model.safetensors", "notes"]
    assert_equal_models(second, SAEModel.from_pretrained(tmp_path / "sae"))
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_save_pretrained_into_the_folder_one_is_in_replaces_the_files_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TinySAE("topk", "autoencoder").model(), TinySAE("jumprelu", "autoencoder").model()
    monkeypatch.chdir(tmp_path)
    first.save_pretrained(".", max_shard_size="1KB")
    (tmp_path / "mine").write_text("x")
    second.save_pretrained(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "mine", "model.safetensors"]
    assert_equal_models(second, SAEModel.from_pretrained(tmp_path))


def test_save_pretrained_on_a_full_disk_is_our_error_and_leaves_the_earlier_sae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TinySAE("topk", "autoencoder").model(), TinySAE("jumprelu", "autoencoder").model()
    first.save_pretrained(tmp_path / "sae")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hf_mote.folders.os.chmod", full)
    with pytest.raises(FileFormatError, match="cannot be written .got No space"):
        second.save_pretrained(tmp_path / "sae")
    assert_equal_models(first, SAEModel.from_pretrained(tmp_path / "sae"))
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileFormatError, match="is a file"):
        second.save_pretrained(tmp_path / "file")
