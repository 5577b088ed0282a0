"""Against the real libraries: what they encode and decode is what we do, and their files come back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_saes import ALL_SAES, HIDDEN, LATENTS, THRESHOLDED, TinySAE, activations
from torch import Tensor

from hf_mote import export_sae, load_sae
from hf_mote.errors import UnsupportedError

pytestmark = pytest.mark.oracle

_METADATA = {
    "model_name": "Qwen/Qwen3-0.6B",
    "hook_name": "blocks.3.hook_resid_post",
    "hf_hook_name": "model.layers.3",
    "prepend_bos": True,
    "seqpos_slice": [None],
}
SAELENS: dict[str, dict[str, Any]] = {
    "standard": {"kind": "standard", "metadata": _METADATA},
    "standard without b_dec": {"kind": "standard", "apply_b_dec_to_input": False},
    "topk": {"kind": "topk", "k": 5, "metadata": _METADATA},
    "topk scaled": {"kind": "topk", "k": 5, "rescale_acts_by_decoder_norm": True},
    "topk of all": {"kind": "topk", "k": LATENTS},
    "topk trained": {"kind": "topk_training", "k": 5},
    "gated": {"kind": "gated"},
    "jumprelu": {"kind": "jumprelu"},
    "jumprelu trained": {"kind": "jumprelu_training"},
    "batchtopk": {"kind": "batchtopk", "k": 5.0},
    "matryoshka": {"kind": "matryoshka", "k": 5.0, "matryoshka_widths": [10, 20, 40]},
    "transcoder": {"kind": "transcoder", "d_out": 7, "apply_b_dec_to_input": False},
    "skip_transcoder": {"kind": "skip_transcoder", "d_out": 7, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"kind": "jumprelu_transcoder", "d_out": HIDDEN, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"kind": "jumprelu_skip_transcoder", "d_out": 7, "apply_b_dec_to_input": False},
    "float64": {"kind": "jumprelu", "dtype": "float64"},
}
SPARSIFY: dict[str, dict[str, Any]] = {
    "topk": {"k": 5, "num_latents": LATENTS},
    "expansion": {"k": 5, "expansion_factor": 3},
    "multi_topk": {"k": 5, "num_latents": LATENTS, "multi_topk": True, "normalize_decoder": False},
    "transcoder": {"k": 5, "num_latents": LATENTS, "transcode": True},
    "skip transcoder": {"k": 5, "num_latents": LATENTS, "transcode": True, "skip_connection": True},
    "skip autoencoder": {"k": 5, "num_latents": LATENTS, "skip_connection": True},
    "float64": {"k": 5, "num_latents": LATENTS, "dtype": "float64"},
}
DICTIONARY_LEARNING: dict[str, dict[str, Any]] = {
    "AutoEncoder": {"kind": "AutoEncoder"},
    "AutoEncoderNew": {"kind": "AutoEncoderNew"},
    "AutoEncoderTopK": {"kind": "AutoEncoderTopK", "k": 5, "threshold": 0.7},
    "BatchTopKSAE": {"kind": "BatchTopKSAE", "k": 5, "threshold": 0.7},
    "GatedAutoEncoder": {"kind": "GatedAutoEncoder"},
    "JumpReluAutoEncoder": {"kind": "JumpReluAutoEncoder"},
    "MatryoshkaBatchTopKSAE": {
        "kind": "MatryoshkaBatchTopKSAE",
        "k": 5,
        "threshold": 0.7,
        "group_fractions": [0.1, 0.3, 0.6],
    },
}
FOREIGN = [
    pytest.param(library, options, id=f"{library}: {name}")
    for library, cases in (("saelens", SAELENS), ("sparsify", SPARSIFY), ("dictionary_learning", DICTIONARY_LEARNING))
    for name, options in cases.items()
]
every_foreign = pytest.mark.parametrize(("library", "options"), FOREIGN)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    found: dict[str, Tensor] = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            found |= load_file(path)
        elif path.suffix == ".pt":
            found |= torch.load(path, weights_only=True)
    return found


def configs_in(folder: Path) -> dict[str, Any]:
    """Return all JSON files of a folder."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def inputs_for(options: dict[str, Any]) -> Tensor:
    return activations(50, HIDDEN, dtype=getattr(torch, options.get("dtype", "float32")))


@every_foreign
def test_load_sae_computes_what_the_library_does(
    oracle: Any, tmp_path: Path, library: str, options: dict[str, Any]
) -> None:
    folder = oracle.make(library, tmp_path / "layers.3", **options)
    inputs = inputs_for(options)
    theirs = oracle.use(library, folder, inputs)
    sae = load_sae(folder)
    assert sae.config.origin["format"] == library
    theirs.assert_is_what(sae, inputs)


@every_foreign
def test_export_sae_gives_back_what_the_library_wrote(
    oracle: Any, tmp_path: Path, library: str, options: dict[str, Any]
) -> None:
    folder = oracle.make(library, tmp_path / "layers.3", **options)
    sae = load_sae(folder)
    sae.save_pretrained(tmp_path / "ours")
    export_sae(load_sae(tmp_path / "ours"), tmp_path / "back", library)
    assert_identical(tensors_in(tmp_path / "back"), tensors_in(folder))
    inputs = inputs_for(options)
    theirs = oracle.use(library, tmp_path / "back", inputs)
    before = oracle.use(library, folder, inputs)
    assert torch.equal(theirs.latents, before.latents)
    assert torch.equal(theirs.reconstruction, before.reconstruction)
    expected = configs_in(folder)
    if "expansion_factor" in options:
        # Spelt out, since 0 would mean as many again.
        expected["cfg.json"]["num_latents"] = 3 * HIDDEN
    assert configs_in(tmp_path / "back") == expected


@pytest.mark.parametrize("library", ["saelens", "sparsify", "dictionary_learning"])
@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_export_sae_is_used_by_the_library_as_here(oracle: Any, tmp_path: Path, sae: TinySAE, library: str) -> None:
    model = sae.model()
    try:
        export_sae(model, tmp_path / "out", library)
    except UnsupportedError:
        assert list(tmp_path.iterdir()) == []
        assert not is_held(sae, library)
        return
    assert is_held(sae, library)
    inputs = activations(50, HIDDEN, seed=9)
    oracle.use(library, tmp_path / "out", inputs).assert_is_what(model, inputs)


def is_held(sae: TinySAE, library: str) -> bool:
    """Whether a library computes what a tiny SAE does."""
    autoencoder = sae.kind == "autoencoder"
    if library == "sparsify":
        return "topk" in sae.name and "batch" not in sae.name and sae.kind != "transcoder"
    if library == "saelens":
        return autoencoder or "relu" in sae.name or sae.name in THRESHOLDED
    return autoencoder and "jumprelu" not in sae.name and "feature_choice" not in sae.name


@pytest.mark.parametrize("name", ["jumprelu", "jumprelu_target", "feature_choice"])
def test_export_sae_to_dictionary_learning_without_pre_bias_has_a_threshold_per_latent(
    oracle: Any, tmp_path: Path, name: str
) -> None:
    model = TinySAE(name, "autoencoder").model(subtract_decoder_bias=False)
    export_sae(model, tmp_path / "out", "dictionary_learning")
    inputs = activations(50, HIDDEN, seed=9)
    oracle.use("dictionary_learning", tmp_path / "out", inputs).assert_is_what(model, inputs)


def test_load_sae_of_head_outputs_takes_them_side_by_side(oracle: Any, tmp_path: Path) -> None:
    options = {"reshape_activations": "hook_z", "metadata": {"hook_name": "blocks.3.attn.hook_z"}}
    folder = oracle.make("saelens", tmp_path / "z", kind="standard", **options)
    inputs = activations(50, HIDDEN)
    oracle.use("saelens", folder, inputs, d_head=4).assert_is_what(load_sae(folder), inputs)
    export_sae(load_sae(folder), tmp_path / "back", "saelens")
    assert configs_in(tmp_path / "back") == configs_in(folder)


@pytest.mark.parametrize(
    ("library", "options"),
    [("saelens", SAELENS["jumprelu"]), ("saelens", SAELENS["topk"]), ("sparsify", SPARSIFY["topk"])],
)
def test_load_sae_bfloat16_stays_bfloat16_where_that_is_asked_for(
    oracle: Any, tmp_path: Path, library: str, options: dict[str, Any]
) -> None:
    folder = oracle.make(library, tmp_path / "half", **{**options, "dtype": "bfloat16"})
    assert load_sae(folder).dtype == torch.float32
    sae = load_sae(folder, dtype="auto")
    assert sae.dtype == torch.bfloat16
    export_sae(sae, tmp_path / "back", library)
    assert_identical(tensors_in(tmp_path / "back"), tensors_in(folder))
    inputs = activations(50, HIDDEN, dtype=torch.bfloat16)
    theirs = oracle.use(library, folder, inputs)
    latents = sae.encode(inputs)
    # bfloat16 has 8 bits: another order of summation differs by a unit in the last place, and so may what is chosen.
    same = (latents > 0) == (theirs.latents > 0)
    assert same.float().mean() > 0.99
    assert ((latents - theirs.latents) * same).abs().max() <= theirs.latents.abs().max() * 2**-7


def test_export_sae_bfloat16_thresholds_let_the_same_latents_through(oracle: Any, tmp_path: Path) -> None:
    model = TinySAE("feature_choice", "autoencoder").model(torch.bfloat16)
    export_sae(model, tmp_path / "out", "saelens")
    again = load_sae(tmp_path / "out", dtype="auto")
    inputs = activations(2000, HIDDEN, dtype=torch.bfloat16, seed=9)
    assert not torch.equal(again.threshold, model.threshold)
    assert torch.equal(again.encode(inputs), model.encode(inputs))
    theirs = oracle.use("saelens", tmp_path / "out", inputs[:50])
    assert torch.equal(oracle.use("saelens", theirs.again, inputs[:50]).latents, theirs.latents)


@pytest.mark.parametrize(
    ("source", "options", "target"),
    [
        # SAELens' own reader of sparsify files gives other numbers, or none.
        ("sparsify", SPARSIFY["topk"], "saelens"),
        ("sparsify", SPARSIFY["topk"], "dictionary_learning"),
        ("saelens", SAELENS["topk"], "sparsify"),
        ("saelens", SAELENS["topk scaled"], "sparsify"),
        ("saelens", SAELENS["gated"], "dictionary_learning"),
        ("dictionary_learning", DICTIONARY_LEARNING["AutoEncoderNew"], "saelens"),
        ("dictionary_learning", DICTIONARY_LEARNING["BatchTopKSAE"], "saelens"),
        ("dictionary_learning", DICTIONARY_LEARNING["JumpReluAutoEncoder"], "saelens"),
        ("dictionary_learning", DICTIONARY_LEARNING["MatryoshkaBatchTopKSAE"], "saelens"),
    ],
)
def test_export_sae_of_one_library_is_used_alike_by_another(
    oracle: Any, tmp_path: Path, source: str, options: dict[str, Any], target: str
) -> None:
    folder = oracle.make(source, tmp_path / "in", **options)
    export_sae(load_sae(folder), tmp_path / "out", target)
    inputs = activations(50, HIDDEN)
    for library, where in ((source, folder), (target, tmp_path / "out")):
        oracle.use(library, where, inputs).assert_is_what(load_sae(folder), inputs)
