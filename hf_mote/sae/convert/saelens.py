"""SAELens, version 6: `cfg.json` and `sae_weights.safetensors`, both ways.

SAELens saves SAEs that were trained to select across a batch as JumpReLU, and so they are written here: Feature Choice
with a threshold for each latent, Mutual Choice, BatchTopK and Matryoshka with the same one for all. Normalisation that
happens at run time is refused: no architecture here does it. An SAE of the outputs of attention heads (`hook_z`) takes
them side by side. `sparsity.safetensors`, statistics that nothing needs, is left alone.

Source: SAELens 6.54.12, `saes/` and `loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import FileFormatError, UnknownNameError, UnsupportedError
from hf_mote.files import read_json, write_json
from hf_mote.sae.convert.formats import Format, Source, build, computes_as, lost_fields, lost_state, origin_of
from hf_mote.sae.convert.tensors import Layout, Sizes, give, narrowed, read_safetensors, take, write_safetensors
from hf_mote.sae.convert.values import check_keys, flag, integer, module_of, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEModel
from hf_mote.sae.variants.gated import GatedSAEModel
from hf_mote.sae.variants.jumprelu import JumpReLUSAEModel
from hf_mote.sae.variants.relu import ReLUSAEModel
from hf_mote.sae.variants.topk import TopKSAEModel

__all__ = ["SAELENS"]

# The oldest version that reads these files; an older or missing one makes SAELens rewrite the config.
_VERSION = "6.0.0"

_PLAIN: Layout = {
    "W_enc": ("W_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
_GATED: Layout = {**_PLAIN, "b_enc": ("b_gate", False), "b_mag": ("b_mag", False), "r_mag": ("r_mag", False)}
_THRESHOLD: Layout = {"threshold": ("threshold", False)}
_SKIP: Layout = {"W_skip": ("W_skip", False)}

_LAYOUTS: dict[str, Layout] = {
    "standard": _PLAIN,
    "topk": _PLAIN,
    "gated": _GATED,
    "jumprelu": {**_PLAIN, **_THRESHOLD},
    "transcoder": _PLAIN,
    "skip_transcoder": {**_PLAIN, **_SKIP},
    "jumprelu_transcoder": {**_PLAIN, **_THRESHOLD},
    "jumprelu_skip_transcoder": {**_PLAIN, **_THRESHOLD, **_SKIP},
}
_MODEL_TYPES = {"gated": "gated_sae", "jumprelu": "jumprelu_sae", "topk": "topk_sae"}
_RESAVE = "Save it with `save_inference_model` of SAELens."
_REFUSED = {
    "abstopk": "its latents are negative, too",
    "batchtopk": f"this is the state of training, without the threshold that it is used with. {_RESAVE}",
    "matching_pursuit": "its latents are found by a search, one after the other",
    "matryoshka_batchtopk": f"this is the state of training, without the threshold that it is used with. {_RESAVE}",
    "temporal": "its latents depend on the tokens before",
}
_KEYS = {
    "apply_b_dec_to_input",
    "architecture",
    "d_in",
    "d_sae",
    "device",
    "dtype",
    "metadata",
    "normalize_activations",
    "reshape_activations",
}
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "d_sae" in config


def _read(source: Source) -> SAEModel:
    path, weights = source.folder / "cfg.json", source.folder / "sae_weights.safetensors"
    cfg = read_json(path)
    architecture = _architecture(path, cfg)
    metadata = section(path, cfg, "metadata")
    transcoder = architecture.endswith("transcoder")
    sizes = Sizes(
        integer(path, cfg, "d_sae"),
        integer(path, cfg, "d_in"),
        integer(path, cfg, "d_out" if transcoder else "d_in"),
    )
    found = read_safetensors(weights)
    tensors = take(weights, found, _LAYOUTS[architecture], sizes)
    _check_dtype(path, cfg, tensors["W_enc"].dtype)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs if transcoder else None,
        "skip_connection": "W_skip" in tensors,
        "subtract_decoder_bias": flag(path, cfg, "apply_b_dec_to_input", default=True),
        "normalize_decoder": False,
        **_names(path, metadata),
    }
    if transcoder and fields["subtract_decoder_bias"]:
        raise FileFormatError(
            f"{path}: apply_b_dec_to_input", "must be false in a transcoder", fix="SAELens refuses it, too."
        )
    if architecture == "topk":
        fields["k"] = integer(path, cfg, "k")
        fields["scale_latents_by_decoder_norm"] = flag(path, cfg, "rescale_acts_by_decoder_norm", default=False)
    origin: dict[str, Any] = {"format": SAELENS.name, "config": cfg}
    if "threshold" in found and found["threshold"].dtype != tensors["W_enc"].dtype:
        origin["threshold_dtype"] = str(found["threshold"].dtype).removeprefix("torch.")
    kind = "jumprelu" if "threshold" in tensors else architecture
    return build(path, _MODEL_TYPES.get(kind, "relu_sae"), fields, tensors, origin)


def _architecture(path: Path, cfg: Mapping[str, Any]) -> str:
    """Return the architecture of a config whose every key is understood."""
    architecture = text(path, cfg, "architecture")
    if architecture in _REFUSED:
        raise UnsupportedError(f"{path}: architecture {architecture}", f"cannot be read: {_REFUSED[architecture]}")
    version = section(path, cfg, "metadata").get("sae_lens_version")
    if not isinstance(version, str) or not version.partition(".")[0].isdecimal() or int(version.partition(".")[0]) < 6:
        raise UnsupportedError(
            f"{path}: metadata.sae_lens_version",
            "the file is not known to be of SAELens 6, and keys meant other things before",
            got=version,
            fix="Load it with SAELens 6 and save it again with `save_model`.",
        )
    if architecture not in _LAYOUTS:
        raise UnknownNameError.of(f"{path}: architecture", architecture, [*_LAYOUTS, *_REFUSED])
    own = {"topk": {"k", "rescale_acts_by_decoder_norm"}}.get(architecture, set())
    own |= {"d_out"} if architecture.endswith("transcoder") else set()
    check_keys(path, cfg, _KEYS | own, fix=f"If the file is a checkpoint of training: {_RESAVE}")
    if cfg.get("normalize_activations") not in (None, "none"):
        raise UnsupportedError(
            f"{path}: normalize_activations",
            "is not folded into the weights, so that they alone are not the SAE",
            got=repr(cfg["normalize_activations"]),
            expected="'none'",
            fix="SAELens can fold 'expected_average_only_in' (`fold_activation_norm_scaling_factor`) and "
            "'covariance_whitening' (`fold_activation_whitening`); the others depend on each token.",
        )
    if (reshape := cfg.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise UnsupportedError(f"{path}: reshape_activations", "unknown", got=repr(reshape))
    return architecture


def _check_dtype(path: Path, cfg: Mapping[str, Any], stored: torch.dtype) -> None:
    said = (text(path, cfg, "dtype") or "float32").removeprefix("torch.")
    if _DTYPES.get(said) != stored:
        raise FileFormatError(
            f"{path}: dtype",
            "is not that of the weights",
            got=said,
            expected=str(stored).removeprefix("torch."),
            fix="SAELens would round the weights when it loads them. Set dtype to what is stored.",
        )


def _names(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config that say what the SAE is of."""
    model = text(path, metadata, "model_name")
    one_head = metadata.get("hook_head_index") is not None
    return {
        # Names without a namespace are those of TransformerLens, which the Hub does not know.
        "base_model": model if model is not None and "/" in model else None,
        "base_model_revision": text(path, section(path, metadata, "model_from_pretrained_kwargs"), "revision"),
        # The output of a module is never that of one head.
        "hookpoint": None if one_head else module_of(text(path, metadata, "hf_hook_name")),
        "output_hookpoint": module_of(text(path, metadata, "hf_hook_name_out")),
    }


def _write(sae: SAEModel, folder: Path) -> list[str]:
    config, origin = sae.config, origin_of(sae, SAELENS.name)
    architecture = _architecture_of(sae)
    layout = _LAYOUTS[architecture]
    tensors = give(sae, {name: layout[name] for name in layout if name != "threshold"}, fold=architecture != "topk")
    if "threshold" in layout:
        tensors["threshold"] = _threshold(sae, origin)
    cfg: dict[str, Any] = {
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "none",
        **section(Path("config.origin"), origin, "config"),
        "architecture": architecture,
        "d_in": config.hidden_size,
        "d_sae": config.num_latents,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "apply_b_dec_to_input": config.subtract_decoder_bias,
    }
    held = {"hidden_size", "num_latents", "output_size", "skip_connection", "subtract_decoder_bias"}
    held |= {"base_model", "base_model_revision", "hookpoint", "output_hookpoint", "normalize_decoder"}
    if "transcoder" in architecture:
        cfg["d_out"] = config.decoder_size
    if isinstance(sae, TopKSAEModel):
        cfg["k"] = sae.config.k
        cfg["rescale_acts_by_decoder_norm"] = sae.config.scale_latents_by_decoder_norm
        held |= {"k", "scale_latents_by_decoder_norm"}
    lost = lost_fields(sae, held)
    cfg["metadata"] = _metadata(sae, section(Path("config.origin"), cfg, "metadata"), lost)
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", cfg)
    becomes = [f"the selection in training: {config.model_type} is read as jumprelu_sae"]
    return [
        *(becomes if isinstance(sae, ThresholdedSAEModel) else []),
        *(f"{name} = {value!r}" for name, value in lost.items()),
        *lost_state(sae, set(layout)),
    ]


def _architecture_of(sae: SAEModel) -> str:
    """Return the architecture of SAELens that computes the same outside training."""
    config, kinds = (
        sae.config,
        (
            (JumpReLUSAEModel, "jumprelu"),
            (ThresholdedSAEModel, "jumprelu"),
            (TopKSAEModel, "topk"),
            (GatedSAEModel, "gated"),
            (ReLUSAEModel, "standard"),
        ),
    )
    where = f"export_sae: {type(sae).__name__}"
    kind = next((name for base, name in kinds if computes_as(sae, base)), None)
    if kind is None:
        raise UnsupportedError(where, "SAELens has no architecture that computes the same")
    if isinstance(sae, ThresholdedSAEModel) and not sae.is_calibrated:
        raise UnsupportedError(
            where,
            "has no threshold yet, and SAELens needs one",
            fix="Train it, or call calibrate_threshold(activations).",
        )
    if not config.is_transcoder:
        return kind
    if kind not in ("standard", "jumprelu"):
        raise UnsupportedError(where, f"SAELens has no {kind} transcoder, only ReLU and JumpReLU")
    if config.subtract_decoder_bias:
        raise UnsupportedError(where, "subtracts b_dec from its input, which no transcoder of SAELens does")
    return ("" if kind == "standard" else "jumprelu_") + ("skip_" if config.skip_connection else "") + "transcoder"


def _threshold(sae: SAEModel, origin: Mapping[str, Any]) -> Tensor:
    """Return a threshold for each latent, in the dtype it was read in or, as SAELens casts it, that of the weights."""
    threshold = sae.state_dict()["threshold"]
    dtype = _DTYPES.get(str(origin.get("threshold_dtype")), sae.W_enc.dtype)
    return narrowed(threshold.expand(sae.config.num_latents), dtype).contiguous()


def _metadata(sae: SAEModel, metadata: dict[str, Any], lost: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the file an SAE came from, brought up to date with its config."""
    config = sae.config
    known = _names(Path("config.origin"), metadata)
    if not metadata:
        metadata = {"sae_lens_version": _VERSION, "sae_lens_training_version": _VERSION}
    if config.base_model != known["base_model"]:
        metadata["model_name"] = config.base_model
    if config.base_model_revision != known["base_model_revision"]:
        kwargs = section(Path("config.origin"), metadata, "model_from_pretrained_kwargs")
        metadata["model_from_pretrained_kwargs"] = {**kwargs, "revision": config.base_model_revision}
    for field, ours, theirs in (
        ("hookpoint", "hf_hook_name", "hook_name"),
        ("output_hookpoint", "hf_hook_name_out", "hook_name_out"),
    ):
        hookpoint = getattr(config, field)
        if hookpoint != known[field]:
            metadata[ours] = hookpoint
            # The name in TransformerLens is of the hookpoint before.
            metadata.pop(theirs, None)
    if isinstance(sae, ThresholdedSAEModel):
        metadata["training_architecture"] = config.model_type
        metadata["training_architecture_details"] = dict(lost)
    return metadata


SAELENS = Format(
    name="saelens",
    weights=("sae_weights.safetensors",),
    config="cfg.json",
    recognises=_recognises,
    read=_read,
    write=_write,
)
