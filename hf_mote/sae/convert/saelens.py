"""SAELens: `cfg.json` and `sae_weights.safetensors`, to read and to write; files of versions before 6 only to read.

SAELens saves SAEs that were trained to select across a batch as JumpReLU, and so they are written here: Feature Choice
with a threshold for each latent, Mutual Choice, BatchTopK and Matryoshka with the same one for all. Normalisation by a
factor is folded into the weights, as SAELens does it, and a normalisation of each token becomes
`config.input_normalization`. An SAE of the outputs of attention heads (`hook_z`) takes them side by side.
`sparsity.safetensors`, unused statistics, is ignored.

A config of before version 6 is rewritten as SAELens rewrites it: other names, other defaults, TopK among the arguments
of the activation function. Its settings of training are only kept in `config.origin`.

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
from hf_mote.sae.convert.formats import (
    Format,
    Source,
    build,
    computes_as,
    lost_fields,
    lost_state,
    origin_of,
    require_plain_input,
)
from hf_mote.sae.convert.names import hook_at, hookpoint_of, hub_model, layer_of, place_of
from hf_mote.sae.convert.tensors import (
    Layout,
    Sizes,
    factors_in,
    give,
    narrowed,
    read_safetensors,
    take,
    write_safetensors,
)
from hf_mote.sae.convert.values import check_keys, check_near, choice, flag, integer, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.normalization import InputNormalization
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
# How SAELens normalises each token, with what eps.
_NORMALIZATIONS: dict[str, tuple[InputNormalization, float]] = {
    "layer_norm": ("layer_norm", 1e-5),
    "constant_norm_rescale": ("rms_norm", 0.0),
}
_AVERAGE = "expected_average_only_in"
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
# What SAELens keeps of a config of before version 6 as metadata.
_OLD_METADATA = {
    "context_size",
    "dataset_path",
    "exclude_special_tokens",
    "hf_hook_name",
    "hf_hook_name_out",
    "hook_head_index",
    "hook_head_index_out",
    "hook_name",
    "hook_name_out",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "model_name",
    "neuronpedia_id",
    "prepend_bos",
    "sae_lens_training_version",
    "sae_lens_version",
    "seqpos_slice",
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
    path, weights = source.folder / "cfg.json", source.path
    document = read_json(path)
    old = _is_old(path, document)
    cfg = _renewed(path, document) if old else document
    architecture = _architecture(path, cfg)
    metadata = section(path, cfg, "metadata")
    transcoder = architecture.endswith("transcoder")
    sizes = Sizes(
        integer(path, cfg, "d_sae"),
        integer(path, cfg, "d_in"),
        integer(path, cfg, "d_out" if transcoder else "d_in"),
    )
    found = read_safetensors(weights)
    if old:
        found = _without_scaling_factor(weights, found, sizes.latents)
    tensors = take(weights, found, _LAYOUTS[architecture], sizes)
    if not old:
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
    fields |= _normalization(path, source, cfg, tensors, transcoder=transcoder)
    if architecture == "topk":
        fields["k"] = integer(path, cfg, "k")
        fields["scale_latents_by_decoder_norm"] = flag(path, cfg, "rescale_acts_by_decoder_norm", default=False)
    origin: dict[str, Any] = {"format": SAELENS.name, "config": {**cfg, "normalize_activations": "none"}}
    if old:
        # It is written as a file of version 6; the old values are kept beside.
        origin["config_before_6"] = document
    elif cfg.get("normalize_activations") in (None, *_NORMALIZATIONS):
        origin["config"] = cfg
    if "threshold" in found and found["threshold"].dtype != tensors["W_enc"].dtype:
        origin["threshold_dtype"] = str(found["threshold"].dtype).removeprefix("torch.")
    kind = "jumprelu" if "threshold" in tensors else architecture
    return build(source, path, _MODEL_TYPES.get(kind, "relu_sae"), fields, tensors, origin)


def _is_old(path: Path, cfg: Mapping[str, Any]) -> bool:
    """Whether a config is of a version before 6; configs without a version are."""
    metadata = section(path, cfg, "metadata")
    version = choice(path, cfg, "sae_lens_version") or choice(path, metadata, "sae_lens_version")
    if not version:
        return True
    major = version.partition(".")[0]
    if not major.isdecimal():
        raise FileFormatError(f"{path}: metadata.sae_lens_version", "must be a version", got=repr(version))
    return int(major) < 6


def _renewed(path: Path, old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of before version 6 as SAELens 6 understands it."""
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    known = [*_OLD_METADATA, *_KEYS, *names, *names.values(), "activation_fn_kwargs"]
    check_near(path, old, known, deciding=("apply_b_dec_to_input", "architecture", "normalize_activations"))
    cfg: dict[str, Any] = {}
    for key, value in old.items():
        name = names.get(key, key)
        if name in cfg and cfg[name] != value:
            what = f"contradicts the other name of {name}"
            raise FileFormatError(f"{path}: {key}", what, got=repr(value), expected=repr(cfg[name]))
        cfg[name] = value
    activation = choice(path, cfg, "activation_fn", default="relu")
    arguments = section(path, cfg, "activation_fn_kwargs")
    for key in arguments:
        # SAELens itself ignores a k of a ReLU.
        if key not in ("k", "signed"):
            where, what = f"{path}: activation_fn_kwargs.{key}", "unknown key, which may change what the weights mean"
            raise FileFormatError(where, what, expected="only k, signed")
    architecture = choice(path, cfg, "architecture", default="standard")
    kept = ["apply_b_dec_to_input", "d_in", "d_sae", "device", "dtype"]
    if activation == "topk":
        if flag(path, arguments, "signed", default=False):
            raise UnsupportedError(f"{path}: activation_fn_kwargs.signed", "its latents are negative, too")
        if architecture not in ("standard", "topk"):
            what = "must be one that goes with activation_fn 'topk'"
            raise FileFormatError(f"{path}: architecture", what, got=repr(architecture), expected="standard or topk")
        architecture, cfg["k"] = "topk", integer(path, arguments, "k")
    elif arguments and cfg.get("activation_fn") is None:
        what, got = "is missing, and has arguments", repr(arguments)
        raise FileFormatError(f"{path}: activation_fn", what, got=got, expected="relu or topk")
    elif activation != "relu":
        # SAELens 6 would compute a ReLU instead.
        raise UnsupportedError(
            f"{path}: activation_fn", "cannot be read", got=repr(activation), expected="relu or topk"
        )
    kept += ["k", "rescale_acts_by_decoder_norm"] if architecture == "topk" else []
    kept += ["d_out"] if architecture.endswith("transcoder") else []
    normalize = cfg.get("normalize_activations")
    if isinstance(normalize, bool):
        normalize = _AVERAGE if normalize else "none"
    else:
        normalize = choice(path, cfg, "normalize_activations", default="none")
    reshaped = "hook_z" if "hook_z" in (text(path, cfg, "hook_name") or "") else "none"
    about = {**section(path, cfg, "metadata"), **cfg}
    return {
        "architecture": architecture,
        "apply_b_dec_to_input": True,
        **{key: cfg[key] for key in kept if key in cfg},
        "normalize_activations": normalize,
        "reshape_activations": choice(path, cfg, "reshape_activations", default=reshaped),
        # The value is read as in the version that renamed it.
        "metadata": {**{key: about[key] for key in _OLD_METADATA if key in about}, "sae_lens_version": _VERSION},
    }


def _without_scaling_factor(path: Path, found: dict[str, Tensor], latents: int) -> dict[str, Tensor]:
    """Return tensors without the factors of latents that files of before version 6 may hold, if they are 1."""
    factor = factors_in(path, found, latents)
    if factor is not None and not torch.allclose(factor.float(), torch.ones(())):
        raise UnsupportedError(f"{path}: scaling_factor", "cannot be read: latents would have to be scaled by it")
    return found


def _normalization(
    path: Path, source: Source, cfg: Mapping[str, Any], tensors: dict[str, Tensor], *, transcoder: bool
) -> dict[str, Any]:
    """Return the fields of an SAE that normalises its input; a factor is folded into the tensors instead."""
    kind = cfg.get("normalize_activations")
    if source.known is not None and source.known.normalization is not None:
        kind = source.known.normalization
    if kind in (None, "none"):
        return {}
    if kind == _AVERAGE:
        factor = source.wanted.norm_scaling_factor or (source.known and source.known.norm_scaling_factor)
        if factor is None:
            raise UnsupportedError(
                f"{path}: normalize_activations",
                "a factor is needed that the file does not hold",
                got=repr(kind),
                fix="Give norm_scaling_factor: the root of d_in divided by the mean norm of the activations.",
            )
        # As SAELens folds it: latents stay in the units that they were trained in.
        tensors["W_enc"] = tensors["W_enc"] * factor
        for name in ("W_dec", "b_dec"):
            tensors[name] = tensors[name] / factor
        return {}
    if not isinstance(kind, str) or kind not in _NORMALIZATIONS or transcoder:
        raise UnsupportedError(
            f"{path}: normalize_activations",
            "is not folded into the weights, so that they alone are not the SAE",
            got=repr(kind),
            expected=f"'none', {_AVERAGE!r} or, but not in a transcoder, {', '.join(map(repr, _NORMALIZATIONS))}",
            fix="SAELens can fold 'covariance_whitening' (`fold_activation_whitening`).",
        )
    name, eps = _NORMALIZATIONS[kind]
    return {"input_normalization": name, "input_normalization_eps": eps}


def _architecture(path: Path, cfg: Mapping[str, Any]) -> str:
    """Return the architecture of a config, all of whose keys are known."""
    architecture = choice(path, cfg, "architecture")
    if architecture in _REFUSED:
        raise UnsupportedError(f"{path}: architecture {architecture}", f"cannot be read: {_REFUSED[architecture]}")
    if architecture not in _LAYOUTS:
        raise UnknownNameError.of(f"{path}: architecture", architecture, [*_LAYOUTS, *_REFUSED])
    own = {"topk": {"k", "rescale_acts_by_decoder_norm"}}.get(architecture, set())
    own |= {"d_out"} if architecture.endswith("transcoder") else set()
    check_keys(path, cfg, _KEYS | own, fix=f"If the file is a checkpoint of training: {_RESAVE}")
    if (reshape := cfg.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise UnsupportedError(f"{path}: reshape_activations", "unknown", got=repr(reshape))
    return architecture


def _check_dtype(path: Path, cfg: Mapping[str, Any], stored: torch.dtype) -> None:
    said = choice(path, cfg, "dtype", default="float32").removeprefix("torch.")
    if _DTYPES.get(said) != stored:
        raise FileFormatError(
            f"{path}: dtype",
            "is not that of the weights",
            got=said,
            expected=str(stored).removeprefix("torch."),
            fix="SAELens would round the weights when it loads them. Set dtype to what is stored.",
        )


def _names(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hookpoint of the SAE for the config: by transformers' names, else by those of TransformerLens."""
    named = text(path, metadata, "model_name")
    # Without a namespace they are those of TransformerLens, some of which the Hub has under another name.
    model = hub_model(named)
    kwargs = section(path, metadata, "model_from_pretrained_kwargs")
    names: dict[str, Any] = {"base_model": model, "base_model_revision": text(path, kwargs, "revision")}
    if flag(path, kwargs, "center_writing_weights", default=False):
        # Of a language model whose activations have no mean, as those of transformers have.
        names["input_normalization"] = "center"
    # The output of a module is never that of one head.
    of_one_head = metadata.get("hook_head_index") is not None
    if of_one_head:
        integer(path, metadata, "hook_head_index", least=0)
    else:
        place = place_of(text(path, metadata, "hook_name"), model)
        names["hookpoint"] = hookpoint_of(text(path, metadata, "hf_hook_name"), model)
        if names["hookpoint"] is None and place is not None and place.rms_norm_eps is None:
            names["hookpoint"] = place.hookpoint
    target = place_of(text(path, metadata, "hook_name_out"), model)
    names["output_hookpoint"] = hookpoint_of(text(path, metadata, "hf_hook_name_out"), model)
    if names["output_hookpoint"] is None and target is not None:
        names["output_hookpoint"] = target.hookpoint
    return names


def _write(sae: SAEModel, folder: Path) -> list[str]:
    config, origin = sae.config, origin_of(sae, SAELENS.name)
    architecture = _architecture_of(sae)
    normalization = _normalization_of(sae)
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
    if normalization != "none" or cfg.get("normalize_activations") is not None:
        cfg["normalize_activations"] = normalization
    held = {"hidden_size", "num_latents", "output_size", "skip_connection", "subtract_decoder_bias"}
    held |= {"base_model", "base_model_revision", "hookpoint", "output_hookpoint", "normalize_decoder"}
    held |= set() if config.input_normalization == "center" else {"input_normalization"}
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


def _normalization_of(sae: SAEModel) -> str:
    """Return SAELens' name of the normalisation of a model's input."""
    config = sae.config
    kind = (config.input_normalization, config.input_normalization_eps)
    if config.input_normalization in (None, "center"):
        # SAELens has the language model centred, not the input of the SAE.
        return "none"
    name = next((name for name, ours in _NORMALIZATIONS.items() if ours == kind), None)
    if name is None or config.is_transcoder:
        require_plain_input(sae, f"SAELens (with an eps of {config.input_normalization_eps})")
    return str(name)


def _threshold(sae: SAEModel, origin: Mapping[str, Any]) -> Tensor:
    """Return a threshold for each latent, in the dtype it was read in or, as SAELens casts it, that of the weights."""
    threshold = sae.state_dict()["threshold"]
    dtype = _DTYPES.get(str(origin.get("threshold_dtype")), sae.W_enc.dtype)
    return narrowed(threshold.expand(sae.config.num_latents), dtype).contiguous()


def _metadata(sae: SAEModel, metadata: dict[str, Any], lost: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the file an SAE came from, brought up to date with its config."""
    config = sae.config
    known = _names(Path("config.origin"), metadata)
    if config.input_normalization == "center":
        kwargs = section(Path("config.origin"), metadata, "model_from_pretrained_kwargs")
        metadata["model_from_pretrained_kwargs"] = {**kwargs, "center_writing_weights": True}
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
        if hookpoint != known.get(field):
            metadata[ours] = hookpoint
            # The name in TransformerLens is of the earlier hookpoint.
            metadata.pop(theirs, None)
            if (hook := hook_at(hookpoint, config.base_model)) is not None:
                metadata[theirs] = f"blocks.{layer_of(hookpoint)}.{hook}"
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
    loaders=("sae_lens",),
    reads="standard, topk, gated, jumprelu, ReLU and JumpReLU transcoders with and without skip; versions before 6",
    writes="these; `batch_topk`, `matryoshka`, `mutual_choice` and `feature_choice` as jumprelu",
    oracle="SAELens",
)
