"""End-to-end losses: their gradient against one that is made by hand, whole sequences, and that nothing is left."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from hf_mote import (
    BatchTopKSAEConfig,
    BatchTopKSAEModel,
    ReLUSAEConfig,
    ReLUSAEModel,
    SAEModel,
    SAETrainer,
    SAETrainingArguments,
    collect_activations,
)
from hf_mote.errors import ConfigError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "it"]
TEXTS = [" ".join(WORDS[i % 7 :] + WORDS[: i % 5]) + f" number {i}." for i in range(40)]
LAYER = "model.layers.1.output"


def stream(**overrides: Any) -> Any:
    settings: dict[str, Any] = {
        "model": tiny_model("mixtral"),
        "hookpoint": LAYER,
        "batch_size": 64,
        "context_length": 16,
        "sequences_per_forward": 3,
        "window_tokens": 128,
        "whole_sequences": True,
        **overrides,
    }
    model, hookpoint = settings.pop("model"), settings.pop("hookpoint")
    return collect_activations(model, tiny_tokenizer(), TEXTS, hookpoint, **settings)


def fresh(kind: str = "relu", **fields: Any) -> SAEModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_latents": 64, **fields}
    if kind == "relu":
        return ReLUSAEModel(ReLUSAEConfig(**sizes))
    return BatchTopKSAEModel(BatchTopKSAEConfig(k=4, **sizes))


def train(sae: Any, folder: Path, source: Any, *callbacks: Any, **arguments: Any) -> SAETrainer:
    settings = {
        "max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no",
        "logging_steps": 1, "dataloader_pin_memory": False, "max_grad_norm": 0.0, **arguments,
    }  # fmt: skip
    trainer = SAETrainer(sae, SAETrainingArguments(str(folder), **settings), train_dataset=source)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    return trainer


class Gradients(TrainerCallback):
    """Keeps the first step's gradients, and the SAE that they are of."""

    def __init__(self, sae: SAEModel) -> None:
        self.sae, self.before, self.found = sae, None, {}

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.before or copy.deepcopy(self.sae)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if not self.found:
            self.found = {name: value.grad.clone() for name, value in self.sae.named_parameters()}


def spliced_by_hand(model: nn.Module, layer: int, record: dict[str, Tensor], new: Tensor) -> Tensor:
    """Log probabilities with new activations where they are kept, by a plain hook on the whole batch."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        mixed = torch.where(record["attention_mask"][..., None].bool(), new, hidden)
        return mixed if isinstance(output, Tensor) else (mixed, *output[1:])

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        return model(record["input_ids"], attention_mask=record["text_mask"]).logits.log_softmax(-1)
    finally:
        handle.remove()


@pytest.mark.parametrize("normalize", [False, True, "per_dimension"])
@pytest.mark.parametrize(("ce", "kl"), [(0.7, 0.0), (0.0, 1.3), (0.5, 0.25)])
def test_gradient_is_that_of_the_spliced_model(ce: float, kl: float, normalize: Any, tmp_path: Path) -> None:
    sae, model = fresh(l1_coefficient=0.0, normalize_decoder=False), tiny_model("mixtral")
    source = stream(normalize=normalize, exclude_positions="first:2")
    (record,) = source.first(1)
    kept = Gradients(sae)
    logged = train(sae, tmp_path, source, kept, ce_coefficient=ce, kl_coefficient=kl).state.log_history[0]

    by_hand = kept.before.train()
    scale = _scale(normalize) if normalize else 1.0
    rebuilt = by_hand(record["activations"], attention_mask=record["attention_mask"]).reconstruction
    clean = spliced_by_hand(model, 1, {**record, "attention_mask": torch.zeros(4, 16)}, torch.zeros(4, 16, 32))
    spliced = spliced_by_hand(model, 1, record, rebuilt / torch.tensor(scale))
    counts = (record["attention_mask"][:, :-1] * record["text_mask"][:, 1:]).bool()
    wanted = record["input_ids"][:, 1:]
    entropy = -spliced[:, :-1].gather(-1, wanted[..., None])[..., 0][counts].mean()
    divergence = (clean[:, :-1].exp() * (clean[:, :-1] - spliced[:, :-1])).sum(-1)[counts].mean()
    valid = record["attention_mask"].bool()
    target, found = record["activations"][valid], rebuilt[valid]
    fvu = (target - found).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
    loss = fvu + ce * entropy + kl * divergence
    loss.backward()

    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(kept.found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert logged["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert logged.get("ce", 0.0) == pytest.approx(float(entropy.detach()) if ce else 0.0, rel=1e-4)
    assert logged.get("kl", 0.0) == pytest.approx(float(divergence.detach()) if kl else 0.0, rel=1e-3)
    # That of the reconstruction alone is another.
    alone = Gradients(again := fresh(l1_coefficient=0.0, normalize_decoder=False))
    train(again, tmp_path, stream(normalize=normalize, exclude_positions="first:2"), alone)
    assert not torch.allclose(alone.found["W_dec"], kept.found["W_dec"], rtol=1e-2)


def _scale(normalize: Any) -> Any:
    source = stream(normalize=normalize, exclude_positions="first:2")
    source.first(1)
    twin = source.from_start()
    next(iter(twin))
    return next(iter(twin.scales.values()))


@pytest.mark.parametrize("kind", ["relu", "batch_topk"])
def test_a_step_is_the_same_however_it_is_cut_up(kind: str, tmp_path: Path) -> None:
    whole, parts = fresh(kind), fresh(kind)
    arguments = {"kl_coefficient": 1.0, "ce_coefficient": 1.0, "lr_scheduler_type": "constant"}
    one = train(whole, tmp_path, stream(), **arguments).state.log_history[0]
    several = stream(batch_size=16, window_tokens=128)
    other = train(parts, tmp_path, several, gradient_accumulation_steps=4, **arguments).state.log_history[0]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for key in ("loss", "fvu", "ce", "kl"):
        assert other[key] == pytest.approx(one[key], rel=1e-3)


def test_several_saes_and_a_transcoder_train_end_to_end(tmp_path: Path) -> None:
    together = {"relu": fresh(), "batch": fresh("batch_topk")}
    alone = fresh("batch_topk")
    arguments = {"kl_coefficient": 1.0, "max_steps": 2}
    logged = train(together, tmp_path, stream(), **arguments).state.log_history[0]
    train(alone, tmp_path, stream(), **arguments)
    assert {"relu/kl", "batch/kl"} <= logged.keys()
    for name, value in alone.state_dict().items():
        assert torch.equal(together["batch"].state_dict()[name], value), name
    transcoder = fresh(output_size=32, output_hookpoint="model.layers.1.mlp")
    source = stream(hookpoint="model.layers.1.mlp.input", targets="model.layers.1.mlp.output", normalize=True)
    more = {"max_steps": 30, "learning_rate": 0.01, "warmup_steps": 0}
    losses = [
        entry["kl"] for entry in train(transcoder, tmp_path, source, **{**arguments, **more}).state.log_history[:30]
    ]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("mixtral").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    train(fresh(), tmp_path, stream(model=model), kl_coefficient=1.0)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_whole_sequences_hold_the_text_of_their_activations() -> None:
    model, source = tiny_model("mixtral"), stream(exclude_positions="first:1", max_norm=1.5)
    seen = 0
    for record in source:
        with torch.no_grad():
            hidden = model(
                record["input_ids"], attention_mask=record["text_mask"], output_hidden_states=True
            ).hidden_states[2]
        kept = record["attention_mask"].bool()
        seen += int(kept.sum())
        torch.testing.assert_close(record["activations"][kept], hidden[kept], rtol=1e-4, atol=1e-5)
        assert not record["attention_mask"][:, 0].any()
    assert 0 < seen <= source.counts["kept"]
    assert source.counts["norm"] > 0


def test_whole_sequences_are_shuffled_and_resumed() -> None:
    whole = [record["input_ids"] for record in stream()]
    first = stream()
    found = [record["input_ids"] for _, record in zip(range(3), first, strict=False)]
    second = stream()
    second.load_state_dict(first.state_dict())
    found += [record["input_ids"] for record in second]
    assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
    assert not torch.equal(torch.cat(whole), torch.cat([record["input_ids"] for record in stream(seed=1)]))


@pytest.mark.parametrize(
    "changed", [{"batch_size": 40}, {"hookpoint": "model.layers.*.output"}, {"cache": "somewhere"}]
)
def test_whole_sequences_that_cannot_be_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="whole_sequences"):
        stream(**changed)


def test_end_to_end_losses_without_the_text_are_refused(tmp_path: Path) -> None:
    arguments = SAETrainingArguments(str(tmp_path), use_cpu=True, kl_coefficient=1.0)
    for source in (stream(whole_sequences=False), [{"activations": torch.zeros(32)}]):
        with pytest.raises(ConfigError, match="has not the token ids that end-to-end losses need"):
            SAETrainer(fresh(), arguments, train_dataset=source)
    for value in (-1.0, float("nan"), True):
        with pytest.raises(ConfigError, match="ce_coefficient: out of range"):
            SAETrainingArguments(str(tmp_path), use_cpu=True, ce_coefficient=value)


def test_cross_entropy_is_that_of_torch() -> None:
    from hf_mote.sae.spliced import cross_entropies, divergences

    logits, other = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    ids = torch.randint(0, 7, (2, 5))
    expected = functional.cross_entropy(logits[:, :-1].reshape(-1, 7), ids[:, 1:].reshape(-1), reduction="none")
    torch.testing.assert_close(cross_entropies(logits, ids).reshape(-1), expected)
    p, q = logits[:, :-1].log_softmax(-1), other[:, :-1].log_softmax(-1)
    expected = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergences(logits, other), expected)
