"""Odd files of sparse autoencoders, their reports, caches and streams that were accepted once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from changes import BY_NAME, change_document, drop, put
from safetensors.torch import load_file, save_file
from tiny_saes import LATENTS, TinySAE
from transformers import AutoConfig, AutoModel

from hf_mote import TopKSAEConfig, load_sae
from hf_mote.errors import HFMoTEError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.sae.convert.native import NATIVE
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.register import sae_class
from hf_mote.sae.report import SAEReport

REPORT = "sae_report.json"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("predictions", value=-1), "predictions: must be a whole number"),
        (put("density", value=[0.1, 0.2]), "is of other latents"),
        (put("density", 1, value=1.5), "density: must be a number"),
        (put("adaptive", "pearson", value=7.0), "pearson: must be a number"),
        (put("ce", value={"clean": 1.0, "sae": 1.0}), "other ablations"),
        (put("predictions", value=11), "predictions: must be a whole number"),
        (put("num_latents", value=0), "num_latents: must be a whole number"),
        (put("density", 0, value=0.15), "density: contradicts .*of 10 tokens"),
        (put("density", 0, value=0.2), "l0: contradicts .*got 1.1, expected 1.2"),
        (put("dead_fraction", value=0.0), "dead_fraction: contradicts"),
        (put("dying_fraction", value=0.0), "dying_fraction: contradicts"),
        (put("freq_over_1_percent", value=1.0), "freq_over_1_percent: contradicts"),
        (put("ce_recovered", "mean", value=0.9), "ce_recovered.mean: contradicts"),
        (put("kl_recovered", "zero", value=None), "kl_recovered.zero: contradicts"),
        (put("l0_quantiles", "0.5", value=2.5), "l0_quantiles: cannot be"),
        (put("zipf", value=None), "lacks one of zipf and underused_fraction"),
        (drop("zipf", "exponent"), "zipf.exponent: lacks a number of the law .*exponent, offset, scale and r2"),
        (drop("zipf", "offset"), "zipf.offset: lacks a number"),
        (drop("zipf", "r2"), "zipf.r2: lacks a number of the law .*expected exponent, offset, scale and r2"),
        (put("zipf", value={}), "zipf.exponent: lacks a number"),
        (put("zipf", "scale", value=0), "zipf.scale: must be a number .got 0, expected above 0"),
        (put("zipf", "exponent", value=-1.0), "zipf.exponent: must be a number"),
        (put("zipf", "offset", value=-0.5), "zipf.offset: must be a number"),
        (drop("adaptive", "l0_by_tenth_of_loss"), "l0_by_tenth_of_loss: must be the mean L0 of each tenth .got None"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[]), "must be the mean L0 of each tenth"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[1.0] * 11), "a list of up to 10 numbers"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[-1.0]), "l0_by_tenth_of_loss: must be a number"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[4.0]), "l0_by_tenth_of_loss: must be a number"),
        (put("adaptive", "l0_by_tenth_of_loss", value=["1"]), "l0_by_tenth_of_loss: must be a number"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[1.0] * 8), "is not whole .got 8 means, expected 9, of 9 pred"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[1.0] * 10), "is not whole .got 10 means, expected 9"),
        (drop("adaptive", "spearman"), "lacks an entry .*spearman"),
        (put("zipf", "r2", value=1.5), "zipf.r2: must be a number"),
        (put("zipf", "scale", value=0.1), "underused_fraction: contradicts other values .*0.333333333, by zipf"),
        (put("underused_fraction", value=0.5), "underused_fraction: contradicts other values .*0.666666667, by zipf"),
        (put("relative_reconstruction_bias", value=-1), "relative_reconstruction_bias: contradicts other values"),
        (put("relative_reconstruction_bias", value=3.0), "relative_reconstruction_bias: contradicts other values"),
        (put("relative_reconstruction_bias", value=0.5), "relative_reconstruction_bias: contradicts other values"),
        (put("kl", "sae", value=-0.5), "kl.sae: must be a number .got -0.5, expected at least -0.0001"),
        (put("kl", "clean", value=0.5), "kl.clean: must be a number"),
        (put("nmse", value=None), "nmse: contradicts other values"),
        (put("nmse", value=0), "nmse: contradicts other values .* goes with an mse of 0.5"),
        (put("fvu", value=0), "fvu: contradicts other values .*0.5 or more, which is nmse"),
        (put("fvu", value=0.4), "fvu: contradicts other values .*0.5 or more, which is nmse"),
        (put("mse", value=0), "contradicts other values"),
        (put("mse", value=0.1), "mse: contradicts other values .*0.125 or more, by nmse and lengths"),
        (put("l2_in", value=3.0), "mse: contradicts other values .*6.25 or more"),
        (put("l2_out", value=2.0), "mse: contradicts other values .*2.25 or more"),
        (put("l2_in", value=5e299), "l2_in: .*got 5e.299"),  # whose square no number can hold
        (put("l2_out", value=1e200), "l2_out: .*got 1e.200"),
        (put("l2_in", value=0.0), "nmse: contradicts other values .*none, by l2_in"),
        (put("l2_ratio", value=0.0), "l2_ratio: contradicts other values"),
        (put("l1", value=0), "l1: contradicts other values .*what goes with an l0 of 1.1"),
        (put("mse", value=1.3), "mse: contradicts other values .*1.25 or less, by nmse and l2_in"),
        (put("relative_reconstruction_bias", value=0.0), "relative_reconstruction_bias: contradicts .*than 0"),
        (put("adaptive", "l0_by_tenth_of_loss", 0, value=1.01), "l0_by_tenth_of_loss: contradicts .*a whole number"),
        (put("adaptive", "l0_by_tenth_of_loss", 0, value=3.0), "l0_by_tenth_of_loss: contradicts .*an l0 of 1.1"),
        (put("adaptive", "l0_by_tenth_of_loss", value=[0.0] * 9), "l0_by_tenth_of_loss: contradicts .*an l0 of 1.1"),
        (put("explained_variance_legacy", value=1.5), "explained_variance_legacy: must be a number"),
    ],
)
def test_a_report_of_an_sae_that_cannot_be_is_refused(
    change: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    one = BY_NAME["sae_report"]
    one.make(tmp_path)
    one.read(tmp_path)
    change_document(tmp_path / REPORT, change)
    with pytest.raises(HFMoTEError, match=reason):
        one.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        put("kl", "sae", value=-1e-7),  # rounding of a perfect reconstruction
        put("fvu", value=None),  # of one token, or of the same activation everywhere
        put("explained_variance_legacy", value=-1e12),  # tokens near the mean
        drop("explained_variance_legacy"),  # as in reports of 0.1.0
        put("adaptive", "pearson", value=None),
        put("relative_reconstruction_bias", value=1.2),
        put("relative_reconstruction_bias", value=None),
    ],
)
def test_a_report_of_an_sae_that_can_be_is_read_and_drawn(change: Callable[[Any], Any], tmp_path: Path) -> None:
    BY_NAME["sae_report"].make(tmp_path)
    change_document(tmp_path / REPORT, change)
    path = tmp_path / REPORT
    document = json.loads(path.read_text())
    if document["kl"]["sae"] < 0:
        document["kl_recovered"] = dict.fromkeys(document["kl_recovered"], (2.0 - document["kl"]["sae"]) / 2.0)
        path.write_text(json.dumps(document))
    assert SAEReport.from_pretrained(tmp_path).plot() is not None


# Our own files


SCALING = ("input_normalization", "input_normalization_eps", "output_size", "subtract_decoder_bias")


@pytest.mark.parametrize("field", [*SCALING, "scale_latents_by_decoder_norm"])
@pytest.mark.parametrize("name", ["relu", "topk", "feature_choice"])
def test_the_config_of_an_sae_without_what_scales_it_is_refused(name: str, field: str, tmp_path: Path) -> None:
    TinySAE(name, "autoencoder").model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if field not in config:
        assert (name, field) == ("relu", "scale_latents_by_decoder_norm")
        return
    value = config.pop(field)
    path.write_text(json.dumps(config))
    for load in (SAEModel.from_pretrained, AutoModel.from_pretrained, AutoConfig.from_pretrained, load_sae):
        with pytest.raises(HFMoTEError, match=rf"\.{field}: is missing.*from_pretrained.folder, {field}="):
            load(tmp_path)
    assert getattr(SAEModel.from_pretrained(tmp_path, **{field: value}).config, field) == value


def test_an_sae_of_ours_says_whether_it_reconstructs_another_place(tmp_path: Path) -> None:
    # As wide as its input: without the place it would be taken for an autoencoder.
    model = TinySAE("topk", "autoencoder").model(
        hookpoint="model.layers.3", output_hookpoint="model.layers.3.mlp", subtract_decoder_bias=False
    )
    model.save_pretrained(tmp_path)
    assert SAEModel.from_pretrained(tmp_path).config.is_transcoder
    change_document(tmp_path / "config.json", drop("output_hookpoint"))
    for load in (SAEModel.from_pretrained, AutoConfig.from_pretrained, load_sae):
        with pytest.raises(HFMoTEError, match=r"\.output_hookpoint: is missing, and its default may be another SAE's"):
            load(tmp_path)
    # Written by hand.
    change_document(tmp_path / "config.json", drop("hf_mote_version"))
    assert not SAEModel.from_pretrained(tmp_path).config.is_transcoder


@pytest.mark.parametrize("place", ["", "a\0b", "x" * 5000])
def test_places_of_an_sae_are_names(place: str, tmp_path: Path) -> None:
    TinySAE("topk", "autoencoder").model().save_pretrained(tmp_path)
    change_document(tmp_path / "config.json", put("output_hookpoints", value=["model.layers.3", place]))
    with pytest.raises(HFMoTEError, match="output_hookpoints: must be a name"):
        SAEModel.from_pretrained(tmp_path)


def test_an_l0_to_train_towards_is_of_no_more_latents_than_there_are(tmp_path: Path) -> None:
    TinySAE("jumprelu_target", "autoencoder").model(l0_target=float(LATENTS)).save_pretrained(tmp_path)
    assert SAEModel.from_pretrained(tmp_path).config.l0_target == LATENTS
    change_document(tmp_path / "config.json", put("l0_target", value=LATENTS + 0.5))
    with pytest.raises(HFMoTEError, match=r"l0_target: more latents than there are .got 40.5, expected at most"):
        SAEModel.from_pretrained(tmp_path)


def _changed(folder: Path, name: str, **changes: Any) -> None:
    """Save an SAE with tensors changed, or left out where `None` is given."""
    TinySAE(name, "autoencoder").model().save_pretrained(folder)
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


TOKENS = torch.tensor(1000)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"density": torch.full((LATENTS,), 1.5), "density_tokens": TOKENS}, "density: must be shares .*1.5 to 1.5"),
        ({"density": torch.full((LATENTS,), -0.1), "density_tokens": TOKENS}, "density: must be shares"),
        ({"density": torch.full((LATENTS,), 0.1), "density_tokens": None}, "density_tokens: is missing, and density"),
        ({"density": torch.full((LATENTS,), 0.1)}, "density_tokens: must be the tokens that the densities are of"),
        ({"density": None, "density_tokens": TOKENS}, "density: is missing, and density_tokens is there"),
        ({"threshold_k": None}, "threshold_k: is missing, and threshold is there"),
    ],
)
@pytest.mark.parametrize("name", ["mutual_choice", "feature_choice"])
def test_densities_and_thresholds_of_an_sae_that_say_half_are_refused(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    _changed(tmp_path, name, **changes)
    for load in (SAEModel.from_pretrained, AutoModel.from_pretrained, load_sae):
        with pytest.raises(HFMoTEError, match=reason):
            load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"density": None, "density_tokens": None, "threshold_steps": None},
        {"density": torch.linspace(0, 1, LATENTS), "density_tokens": TOKENS},
        {"threshold": torch.tensor(torch.nan), "threshold_k": None},
    ],
)
def test_state_of_training_that_an_sae_may_lack_is_not_asked_for(changes: dict[str, Any], tmp_path: Path) -> None:
    _changed(tmp_path, "mutual_choice", **changes)
    assert SAEModel.from_pretrained(tmp_path).config.k == 4


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_thresholds_of_zero_need_their_k_too(name: str, tmp_path: Path) -> None:
    _changed(tmp_path, name, threshold=torch.tensor(0.0), threshold_k=None)
    with pytest.raises(HFMoTEError, match="threshold_k: is missing, and threshold is there"):
        SAEModel.from_pretrained(tmp_path)


# Caches and streams


def _said(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change what a window of a cache says of itself."""
    path = folder / "window-000001-of-0-1.arrow"
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        table = reader.read_all()
    (key,) = table.schema.metadata
    said = change(json.loads(table.schema.metadata[key]))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        del writer
    table = table.replace_schema_metadata({key: json.dumps(said).encode()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "change",
    [
        *(put("left_out", kind, value=1) for kind in ("norm", "kept", "special", "position")),
        put("left_out", "other", value=0),
        drop("left_out", "norm"),
    ],
)
def test_a_window_that_counts_other_tokens_than_its_text_has_is_refused(
    change: Callable[[Any], Any], tmp_path: Path
) -> None:
    one = BY_NAME["activation_cache"]
    one.make(tmp_path)
    _said(tmp_path, lambda said: said)
    one.read(tmp_path)
    _said(tmp_path, change)
    with pytest.raises(HFMoTEError, match="left_out: counts other tokens than the text has"):
        one.read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 2},
        {"batch": 0},
        {"yielded": 5},
        {"window": 1},
        {"batch": 0, "yielded": 2},
        {"window": 1, "batch": 0, "yielded": 2, "counts": {"kept": 63}},
        {"counts": {"kept": 32}},
        {"epoch": 1, "window": 1, "batch": 0, "yielded": 2, "counts": {"kept": 32}},
    ],
    ids=str,
)
def test_a_stream_does_not_go_where_its_batches_contradict(changes: dict[str, Any], tmp_path: Path) -> None:
    one = BY_NAME["stream_state"]
    one.make(tmp_path)
    path = tmp_path / "activations_0.safetensors"
    tensors, metadata = read_tensors(path, kind="activation_stream")
    state = metadata["state"]
    assert (state["epoch"], state["window"], state["batch"], state["yielded"]) == (0, 0, 1, 1)
    counts = {**state["counts"], **changes.pop("counts", {})}
    write_tensors(path, tensors, {"kind": "activation_stream", "state": {**state, **changes, "counts": counts}})
    with pytest.raises(HFMoTEError, match="window, batch, yielded, counts: contradict each other"):
        one.read(tmp_path)


def test_a_stream_does_not_stand_behind_the_end_of_its_window(tmp_path: Path) -> None:
    one = BY_NAME["stream_state"]
    one.make(tmp_path)
    path = tmp_path / "activations_0.safetensors"
    tensors, metadata = read_tensors(path, kind="activation_stream")
    state = {**metadata["state"], "batch": 99, "yielded": 99}
    write_tensors(path, tensors, {"kind": "activation_stream", "state": state})
    with pytest.raises(HFMoTEError, match="stood behind the end of its window .got batch 99"):
        one.read(tmp_path)


@pytest.mark.parametrize(("name", "shape"), [("w_enc", (11, 40)), ("b_dec", (11,)), ("b_dec", (13,))])
def test_layers_of_gemma_scope_2_that_differ_in_width_are_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    one = BY_NAME["sae/gemma_scope_2_layers"]
    one.make(tmp_path)
    one.read(tmp_path)
    path = tmp_path / "params_layer_1.safetensors"
    save_file({**load_file(path), name: torch.ones(shape)}, path)
    with pytest.raises(HFMoTEError, match=f"{name}: is of another width than w_dec"):
        one.read(tmp_path)


@pytest.mark.parametrize("key", ["apply_decoder_bias_to_pre_encoder", "norm_activation"])
@pytest.mark.parametrize("name", ["sae/llama_scope", "sae/llama_scope_r1"])
def test_a_config_of_lm_saes_without_what_was_filled_in_otherwise_once_is_refused(
    name: str, key: str, tmp_path: Path
) -> None:
    one = BY_NAME[name]
    one.make(tmp_path)
    (path,) = [*tmp_path.rglob("hyperparams.json"), *tmp_path.rglob("config.json")]
    whole = {"apply_decoder_bias_to_pre_encoder": False, **json.loads(path.read_text())}
    with_type = {**whole, "sae_type": "sae"}
    without_type = {name: value for name, value in whole.items() if name != "sae_type"}
    for given in (with_type, without_type, {name: value for name, value in with_type.items() if name != key}):
        path.write_text(json.dumps(given))
        one.read(tmp_path)
    for lost in ({name: value for name, value in without_type.items() if name != key}, {**without_type, key: None}):
        path.write_text(json.dumps(lost))
        with pytest.raises(HFMoTEError, match=f"{key}: is missing, and the library's default changed"):
            one.read(tmp_path)


def test_log_thresholds_in_float8_are_read_by_their_values(tmp_path: Path) -> None:
    one = BY_NAME["sae/llama_scope_r1"]
    one.make(tmp_path)
    (path,) = tmp_path.rglob("sae_weights.safetensors")
    tensors = load_file(path)
    name = "log_jumprelu_threshold"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    one.read(tmp_path)
    save_file({**tensors, name: tensors[name].to(torch.complex64)}, path)
    with pytest.raises(HFMoTEError, match=f"{name}: wrong shape or value"):
        one.read(tmp_path)


def test_a_folder_that_cannot_be_listed_is_no_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(HFMoTEError, match="cannot be read .*Permission denied"):
        load_sae(tmp_path)


@pytest.mark.parametrize("carried", ["width", "dtype", "many", "name"])
def test_a_stream_does_not_go_where_it_never_stood(carried: str, tmp_path: Path) -> None:
    one = BY_NAME["stream_state"]
    one.make(tmp_path)
    path = tmp_path / "activations_0.safetensors"
    tensors, metadata = read_tensors(path, kind="activation_stream")
    tensors = {name: torch.zeros(3, 32) for name in tensors or ("model.layers.0", "model.layers.1")}
    first = next(iter(tensors))
    tensors |= {
        "width": {name: torch.zeros(3, 31) for name in tensors},
        "dtype": {first: torch.zeros(3, 32, dtype=torch.float64)},
        "many": {name: torch.zeros(99, 32) for name in tensors},
        "name": {"other": torch.zeros(3, 32)},
    }[carried]
    state = metadata["state"]
    state |= {"window": 1, "batch": 0, "yielded": 0, "counts": {**state["counts"], "kept": 3}}
    write_tensors(path, tensors, {"kind": "activation_stream", "state": state})
    with pytest.raises(HFMoTEError, match=r"another width|is not what was left|must be rows"):
        one.read(tmp_path)


@pytest.mark.parametrize("share", [[1, 2], [0, 2], [2, 3]])
def test_a_stream_does_not_go_on_where_another_process_stood(share: list[int], tmp_path: Path) -> None:
    one = BY_NAME["stream_state"]
    one.make(tmp_path)
    path = tmp_path / "activations_0.safetensors"
    tensors, metadata = read_tensors(path, kind="activation_stream")
    state = {**metadata["state"], "share": share}
    write_tensors(path, tensors, {"kind": "activation_stream", "state": state})
    with pytest.raises(HFMoTEError, match=f"another process .*got the state of process {share[0]} of {share[1]}"):
        one.read(tmp_path)


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka", "feature_choice", "mutual_choice"])
def test_the_config_of_an_sae_without_k_is_refused(name: str, tmp_path: Path) -> None:
    TinySAE(name, "autoencoder").model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    k = config.pop("k")
    path.write_text(json.dumps(config))
    for load in (SAEModel.from_pretrained, AutoModel.from_pretrained, AutoConfig.from_pretrained, load_sae):
        with pytest.raises(HFMoTEError, match=r"\.k: is missing"):
            load(tmp_path)
    assert SAEModel.from_pretrained(tmp_path, k=k).config.k == k
    assert sae_class(config["model_type"]).config_class().k == 32


@pytest.mark.parametrize("again", ["model.layers.2.mlp", "model.layers.2.mlp.output", "model.layers.2.mlp.output[0]"])
def test_places_that_an_sae_writes_to_are_each_another(again: str) -> None:
    fields: dict[str, Any] = {"hidden_size": 8, "output_size": 16, "num_latents": 40}
    TopKSAEConfig(output_hookpoints=["model.layers.2.mlp", "model.layers.3.mlp"], **fields)
    with pytest.raises(HFMoTEError, match="output_hookpoints: hold one place twice .got 'model.layers.2.mlp'"):
        TopKSAEConfig(output_hookpoints=["model.layers.2.mlp", again], **fields)


def test_a_window_on_a_damaged_disk_is_refused(tmp_path: Path) -> None:
    one = BY_NAME["activation_cache"]
    one.make(tmp_path)
    path = tmp_path / "window-000001-of-0-1.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HFMoTEError, match="other values than were written"):
        one.read(tmp_path)


@pytest.mark.parametrize("model_type", [["topk_sae"], {"a": "topk_sae"}, None, 7, True])
def test_a_model_type_of_any_type_names_no_sae(model_type: Any) -> None:
    assert not NATIVE.recognises({"model_type": model_type})
    assert NATIVE.recognises({"model_type": "topk_sae"})


@pytest.mark.parametrize("dtype", [["a"], [], 1.5, {"a": "torch.float32"}, "torch.float32", None])
def test_what_another_library_calls_dtype_is_saved_as_its_file_has_it(dtype: Any, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    BY_NAME["sae/saelens_3"].make(tmp_path / "read")
    (path,) = (tmp_path / "read").rglob("cfg.json")
    change_document(path, put("dtype", value=dtype))
    sae = load_sae(path.parent)
    assert "origin" in repr(sae.config)
    sae.save_pretrained(tmp_path / "saved")
    again = SAEModel.from_pretrained(tmp_path / "saved")
    assert sae.config.origin == again.config.origin
    assert again.config.origin["config_before_6"]["dtype"] == dtype
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float32"
