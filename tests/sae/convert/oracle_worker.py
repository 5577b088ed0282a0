"""Runs inside the environment of the real libraries: makes, loads, uses and saves dictionaries with their own code.

Reads tasks from its standard input, one JSON object a line, and answers each with one line: `{}`, or the error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

D, F = 12, 40


def fill(module: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values, thresholds positive ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name == "threshold":
                values = values.abs() * 0.3
            elif name == "r_mag" or parameter.ndim == 1:
                values = values * 0.3
            parameter.copy_(values)


# SAELens


def make_saelens(folder: Path, kind: str, dtype: str = "float32", **fields: Any) -> None:
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.transcoder import (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        Transcoder,
        TranscoderConfig,
    )

    kinds = {
        "transcoder": (Transcoder, TranscoderConfig),
        "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
        "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
        "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
    }
    names = {"standard": "Standard", "topk": "TopK", "gated": "Gated", "jumprelu": "JumpReLU", "abstopk": "AbsTopK"}
    names |= {"topk_training": "TopKTraining", "jumprelu_training": "JumpReLUTraining"}
    names |= {"batchtopk": "BatchTopKTraining", "matryoshka": "MatryoshkaBatchTopKTraining"}
    for key, name in names.items():
        kinds[key] = (getattr(sae_lens, f"{name}SAE"), getattr(sae_lens, f"{name}SAEConfig"))
    sae_class, config_class = kinds[kind]
    if "metadata" in fields:
        fields["metadata"] = SAEMetadata(**fields["metadata"])
    sae = sae_class(config_class(d_in=D, d_sae=F, dtype=dtype, **fields))
    fill(sae, seed=len(kind))
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.7)
    training = hasattr(sae, "save_inference_model")
    (sae.save_inference_model if training else sae.save_model)(folder)


def run_saelens(folder: Path, inputs: torch.Tensor, again: Path, **options: Any) -> dict[str, torch.Tensor]:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu").eval()
    sae.save_model(again)
    if "d_head" in options:
        inputs = inputs.unflatten(-1, (-1, options["d_head"]))
    return {"latents": sae.encode(inputs), "reconstruction": sae(inputs).reshape(len(inputs), -1)}


# sparsify


def make_sparsify(folder: Path, dtype: str = "float32", **fields: Any) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D, SparseCoderConfig(**fields), dtype=getattr(torch, dtype))
    fill(coder, seed=len(fields))
    coder.save_to_disk(folder)


def run_sparsify(folder: Path, inputs: torch.Tensor, again: Path) -> dict[str, torch.Tensor]:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    coder.save_to_disk(again)
    # Not `forward`, which with `multi_topk` returns the latents and reconstruction of that loss, four times as many.
    values, indices, _ = coder.encode(inputs)
    reconstruction = coder.decode(values, indices)
    if coder.W_skip is not None:
        reconstruction = reconstruction + inputs @ coder.W_skip.mT
    latents = torch.zeros(len(inputs), coder.num_latents, dtype=coder.dtype).scatter(1, indices, values)
    return {"latents": latents, "reconstruction": reconstruction}


# dictionary_learning


def make_dictionary_learning(folder: Path, kind: str, threshold: float | None = None, **fields: Any) -> None:
    from dictionary_learning.dictionary import AutoEncoderNew
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped"}
    common |= {"submodule_name": "resid_post_layer_3", "device": "cpu", "steps": 10_000}
    trainer_class = {
        "AutoEncoder": StandardTrainer,
        "AutoEncoderNew": StandardTrainer,
        "AutoEncoderTopK": TopKTrainer,
        "BatchTopKSAE": BatchTopKTrainer,
        "GatedAutoEncoder": GatedSAETrainer,
        "JumpReluAutoEncoder": JumpReluTrainer,
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKTrainer,
    }[kind]
    trainer = trainer_class(**common, **fields)
    dictionary = AutoEncoderNew(D, F) if kind == "AutoEncoderNew" else trainer.ae
    fill(dictionary, seed=len(kind))
    if kind == "AutoEncoder":
        # As its trainer leaves it; on loading the library would make it so.
        dictionary.decoder.weight.data /= dictionary.decoder.weight.norm(dim=0, keepdim=True)
    if threshold is not None:
        dictionary.threshold.fill_(threshold)
    config = {**trainer.config, "dict_class": kind}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.cpu() for name, tensor in dictionary.state_dict().items()}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128, "io": "out"}}))


def run_dictionary_learning(folder: Path, inputs: torch.Tensor, again: Path) -> dict[str, torch.Tensor]:
    from dictionary_learning.utils import load_dictionary

    dictionary, config = load_dictionary(str(folder), device="cpu")
    again.mkdir()
    torch.save({name: tensor.cpu() for name, tensor in dictionary.state_dict().items()}, again / "ae.pt")
    (again / "config.json").write_text(json.dumps(config))
    latents = dictionary.encode(inputs)
    return {"latents": latents, "reconstruction": dictionary.decode(latents)}


# Releases, by the readers that SAELens has for them


def run_release(
    folder: Path,
    inputs: torch.Tensor,
    again: Path,
    reader: str,
    repo_id: str,
    folder_name: str,
    factor: float | None = None,
    **overrides: Any,
) -> dict[str, torch.Tensor]:
    """Read an SAE as `SAE.from_pretrained` does, the repository being a folder here."""
    from huggingface_hub.utils import EntryNotFoundError
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id: str, filename: str, subfolder: str | None = None, **options: Any) -> str:
        path = Path(folder, subfolder or "", filename)
        if not path.is_file():
            raise EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in load_file(folder / filename).items()}

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes
    read = loaders.NAMED_PRETRAINED_SAE_LOADERS[reader]
    config, state, _ = read(
        repo_id=repo_id, folder_name=folder_name, device="cpu", cfg_overrides={"dtype": "float32", **overrides}
    )
    config = loaders.handle_config_defaulting(config)
    sae_config = SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config)
    sae = SAE.get_sae_class_for_architecture(config["architecture"])(sae_config)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if config.get("normalize_activations") == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(factor)
    sae = sae.to(dtype=torch.float32)
    if sae.cfg.reshape_activations == "hook_z":
        sae.turn_off_forward_pass_hook_z_reshaping()
    latents = sae.encode(inputs)
    return {"latents": latents, "reconstruction": sae(inputs)}


# circuit-tracer


def run_circuit_tracer(folder: Path, inputs: torch.Tensor, again: Path, file: str) -> dict[str, torch.Tensor]:
    from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder

    options = {"lazy_encoder": False, "lazy_decoder": False, "device": torch.device("cpu")}
    transcoder = load_relu_transcoder(str(folder / file), layer=0, **options)
    again.mkdir()
    transcoder.to_safetensors(str(again / file))
    with torch.enable_grad():
        reconstruction = transcoder(inputs).detach()
    return {"latents": transcoder.encode(inputs), "reconstruction": reconstruction}


def run_circuit_tracer_clt(folder: Path, inputs: torch.Tensor, again: Path) -> dict[str, torch.Tensor]:
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    options = {"dtype": torch.float32, "device": torch.device("cpu"), "lazy_decoder": False}
    transcoder = load_clt(str(folder), **options)
    # The library itself applies the activation layer by layer.
    latents = torch.stack([transcoder.encode_layer(layer, i) for i, layer in enumerate(inputs)])
    rebuilt = transcoder.decode(latents.to_sparse(), inputs)
    return {"latents": latents, "reconstruction": rebuilt}


# Llamascopium, formerly lm-saes


def make_llamascopium(folder: Path, norms: list[float], **fields: Any) -> None:
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    common = {"d_model": D, "expansion_factor": F / D, "dtype": torch.float32, "device": "cpu"}
    config = SAEConfig(**common, **fields)
    sae = SparseAutoEncoder(config)
    fill(sae, seed=len(fields))
    for parameter in sae.activation_function.parameters() if hasattr(sae.activation_function, "parameters") else []:
        parameter.data = parameter.data - 1
    sae.set_dataset_average_activation_norm(dict(zip(config.associated_hook_points, norms, strict=False)))
    sae.save_pretrained(folder)
    config.save_hyperparameters(folder)


def run_llamascopium(folder: Path, inputs: torch.Tensor, again: Path) -> dict[str, torch.Tensor]:
    from llamascopium.models.sae import SparseAutoEncoder

    sae = SparseAutoEncoder.from_local(str(folder), device="cpu")
    source, target = sae.cfg.hook_point_in, sae.cfg.hook_point_out
    batch, scales = sae.normalize_activations({source: inputs, target: inputs}, return_scale_factor=True)
    latents = sae.encode(batch[source])
    rebuilt = sae.denormalize_activations({target: sae.decode(latents)}, scales)[target]
    return {"latents": latents, "reconstruction": rebuilt}


def answer(task: dict[str, Any]) -> None:
    folder, options = Path(task["folder"]), task.get("options", {})
    if task["task"] == "make":
        return globals()[f"make_{task['library']}"](folder, **options)
    inputs = load_file(task["inputs"])["inputs"]
    with torch.no_grad():
        found = globals()[f"run_{task['library']}"](folder, inputs, Path(task["again"]), **options)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, task["outputs"])


def main() -> None:
    torch.set_num_threads(1)
    # What libraries print must not come between the answers.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        reply = SimpleNamespace(error=None)
        try:
            answer(json.loads(line))
        except Exception:
            reply.error = traceback.format_exc()
        out.write(json.dumps(vars(reply)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
