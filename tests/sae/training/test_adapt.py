"""`adapt_to_sae`: the adapter brings predictions back, belongs to PEFT, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from sae.test_intervene import num_hooks, residual, sae_for
from tiny_models import tiny_model, tiny_tokenizer
from torch.nn import functional

from hf_mote import adapt_to_sae, evaluate_sae, splice_sae, steer
from hf_mote.errors import ConfigError, DataError, ModelMismatchError, UnknownNameError, UnsupportedError
from hf_mote.sae.intervene import sites_of
from hf_mote.sae.training import adapt
from hf_mote.sae.training.adapt import lora_after, splice_arguments

# PEFT reads of a model what newer transformers call otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] * (1 + i % 3) for i in range(60)]
MEASURED: dict[str, Any] = {"packed": False, "context_length": 32}
QUICK: dict[str, Any] = {
    "tokenizer": tiny_tokenizer(),
    "context_length": 32,
    "max_tokens": 40_000,
    "learning_rate": 3e-3,
}
IDS = torch.tensor([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])


def mean_divergence(plain: torch.Tensor, other: torch.Tensor) -> float:
    p, q = (logits[:, :-1].double().log_softmax(-1) for logits in (plain, other))
    return float(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean())


@pytest.fixture(scope="module")
def adapted() -> Any:
    """What it makes of a tiny model, with what model and SAE were before."""
    model, sae = tiny_model("mixtral"), sae_for("topk")
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(sae.state_dict())
    return adapt_to_sae(model, sae, TEXTS, **QUICK), model, sae, before


def test_adapter_recovers_what_the_sae_loses(adapted: Any) -> None:
    made, _, sae, _ = adapted
    without = evaluate_sae(tiny_model("mixtral"), sae, TEXTS, tiny_tokenizer(), **MEASURED)
    with_it = evaluate_sae(made, sae, TEXTS, tiny_tokenizer(), with_adapter=True, **MEASURED)
    # One plain model is the measure of both.
    for name in ("clean", "zero", "mean", "resample"):
        assert with_it.ce[name] == pytest.approx(without.ce[name], rel=1e-5)
    assert with_it.fvu == pytest.approx(without.fvu, rel=1e-4)
    assert with_it.kl["sae"] < 0.7 * without.kl["sae"]
    assert with_it.kl_recovered["zero"] > without.kl_recovered["zero"]
    # The weights are random, so that the plain model is not the best one: nearer to it is what counts.
    assert abs(with_it.ce_recovered["zero"] - 1) < abs(without.ce_recovered["zero"] - 1)


def test_model_and_sae_stay_as_they_were(adapted: Any) -> None:
    made, model, sae, (weights, latents) = adapted
    base = {
        name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if "lora_" not in name
    }
    assert base.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in base.items())
    assert all(torch.equal(value, latents[name]) for name, value in sae.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in sae.parameters())
    assert num_hooks(model) == 0
    assert not made.training
    with torch.no_grad(), made.disable_adapter():
        assert torch.equal(made(IDS).logits, tiny_model("mixtral")(IDS).logits)


@torch.no_grad()
def test_adapter_is_shared_by_peft_alone(adapted: Any, tmp_path: Path) -> None:
    made, _, sae, _ = adapted
    made.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("mixtral"), tmp_path)
    with splice_sae(made, sae):
        expected = made(IDS).logits
    with splice_sae(loaded, sae):
        assert torch.equal(loaded(IDS).logits, expected)
    with steer(loaded, sae, {3: 40.0}):
        assert not torch.equal(loaded(IDS).logits, made(IDS).logits)


def test_report_with_adapter_is_what_splicing_gives(adapted: Any) -> None:
    made, _, sae, _ = adapted
    rows = [{"input_ids": row.tolist()} for row in IDS]
    report = evaluate_sae(made, sae, rows, with_adapter=True, packed=False)
    with torch.no_grad():
        plain = tiny_model("mixtral")(IDS).logits
        with splice_sae(made, sae):
            spliced = made(IDS).logits
    assert report.kl["sae"] == pytest.approx(mean_divergence(plain, spliced), rel=1e-4)


def test_adapters_before_the_sae_are_measured_as_they_splice() -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    made = peft.get_peft_model(model, config).eval()
    rows = [{"input_ids": row.tolist()} for row in IDS]
    report = evaluate_sae(made, sae, rows, with_adapter=True, packed=False)
    with torch.no_grad():
        plain = tiny_model("mixtral")(IDS).logits
        with splice_sae(made, sae):
            spliced = made(IDS).logits
    assert report.kl["sae"] == pytest.approx(mean_divergence(plain, spliced), rel=1e-4)


def test_default_adapters_are_in_the_layers_after_the_sae() -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    config: Any = lora_after(model, sites_of(model, sae, None, "test")[1], rank=3)
    assert config.r == 3
    assert {path.split(".")[2] for path in config.target_modules} == {"2"}
    assert {path.rsplit(".", 1)[1] for path in config.target_modules} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(ConfigError, match="no linear module comes after the SAE"):
        adapt_to_sae(model, sae_for("topk", hookpoint="model.layers.2.output"), TEXTS, **QUICK)


def test_loss_of_a_step_does_not_depend_on_its_micro_batches(tmp_path: Path) -> None:
    def trained(size: int, steps: int) -> list[torch.Tensor]:
        arguments = adapt.TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            learning_rate=1e-2, save_strategy="no", report_to=[], use_cpu=True, dataloader_pin_memory=False,
            disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        made = adapt_to_sae(
            tiny_model("mixtral"), sae_for("topk"), TEXTS, tokenizer=tiny_tokenizer(), arguments=arguments,
            packed=False, context_length=32,
        )  # fmt: skip
        return [value for name, value in made.state_dict().items() if "lora_B" in name]

    for one, other in zip(trained(8, 1), trained(2, 4), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_what_is_left_out_stays_the_model_s_own_in_training_evaluation_and_use() -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    left_out: dict[str, Any] = {"exclude_positions": "first:1", "max_norm": 1.2}
    used = splice_arguments(model, sae, TEXTS, tokenizer=tiny_tokenizer(), context_length=32, **left_out)
    assert used["exclude_tokens"] == sorted(tiny_tokenizer().all_special_ids)
    assert used["exclude_positions"] == "first:1"
    rows, _ = adapt._rows(tiny_tokenizer(), TEXTS, "text", 32, True, 10**6, 0)
    lengths = []
    for row in rows[:64]:
        hidden = residual(model, torch.tensor([row]))[0]
        special = torch.isin(torch.tensor(row), torch.tensor(used["exclude_tokens"]))
        lengths += hidden[1:].norm(dim=-1)[~special[1:]].tolist()
    middle = sorted(lengths)[(len(lengths) - 1) // 2]
    assert used["norm_limit"] == pytest.approx(1.2 * middle, rel=1e-5)

    with torch.no_grad():
        plain = model(IDS).logits
        with splice_sae(model, sae, **used):
            before = mean_divergence(plain, model(IDS).logits)
    made = adapt_to_sae(model, sae, TEXTS, **QUICK, **left_out)
    with torch.no_grad():
        with splice_sae(made, sae, **used):
            after = mean_divergence(plain, made(IDS).logits)
        rows = [{"input_ids": row.tolist()} for row in IDS]
        report = evaluate_sae(
            made, sae, rows, with_adapter=True, packed=False, exclude_positions="first:1", exclude_special_tokens=False
        )
        with splice_sae(made, sae, exclude_positions="first:1"):
            spliced = made(IDS).logits
    assert after < 0.9 * before
    # The report does not count the prediction after a token that is left out.
    assert report.kl["sae"] == pytest.approx(mean_divergence(plain[:, 1:], spliced[:, 1:]), rel=1e-4)


def test_run_of_a_text_that_gives_another_limit_is_refused(tmp_path: Path) -> None:
    rows = [{"input_ids": [10 + i, 11, 12, 13, 14, 15, 16, 17]} for i in range(8)]
    quick: dict[str, Any] = {"max_tokens": 16, "packed": False, "batch_size": 2, "max_norm": 1.02}
    adapt_to_sae(tiny_model("mixtral"), sae_for("topk"), rows, **quick, run_folder=tmp_path)
    others = [*rows[:4], *({"input_ids": [40, 41, 42 + i]} for i in range(8))]
    for text, changed in ((others, {}), (rows, {"max_norm": 1.5}), (rows, {"exclude_positions": "first:1"})):
        with pytest.raises(ModelMismatchError):
            adapt_to_sae(tiny_model("mixtral"), sae_for("topk"), text, **{**quick, **changed}, run_folder=tmp_path)


def test_adapter_of_a_first_position_left_out_is_another(adapted: Any) -> None:
    made, _, _, _ = adapted
    other = adapt_to_sae(tiny_model("mixtral"), sae_for("topk"), TEXTS, **QUICK, exclude_positions="first:1")
    one, two = made.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_tokens": 0}, ConfigError, "max_tokens"),
        ({"learning_rate": 0.0}, ConfigError, "learning_rate"),
        ({"context_length": 1}, ConfigError, "context_length"),
        ({"exclude_positions": "last"}, ConfigError, "exclude_positions: must be a range"),
        ({"max_norm": -1.0}, ConfigError, r"adapt_to_sae\.max_norm: must be a number"),
        ({"max_norm": 2.0, "exclude_positions": "0:"}, DataError, "no token left whose length"),
        ({"tokenizer": None}, DataError, "there is no tokenizer"),
        ({"hookpoint": "model.layer.1"}, UnknownNameError, r"adapt_to_sae\.hookpoint: unknown name"),
        ({"peft_config": LoraConfig(target_modules=["nothing"])}, ConfigError, "does not fit the model"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_model(settings: Any, error: Any, message: str) -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    keys = set(model.state_dict())
    with pytest.raises(error, match=message):
        adapt_to_sae(model, sae, TEXTS, **{**QUICK, **settings})
    assert set(model.state_dict()) == keys
    assert num_hooks(model) == 0


def test_what_fails_on_the_way_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    before, wanted = model(IDS).logits, [parameter.requires_grad for parameter in model.parameters()]
    monkeypatch.setattr(adapt, "divergences", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        adapt_to_sae(model, sae, TEXTS, **QUICK)
    assert torch.equal(model(IDS).logits, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert num_hooks(model) == 0
    assert not any("lora" in name for name in model.state_dict())
    monkeypatch.undo()
    adapt_to_sae(model, sae, TEXTS, **{**QUICK, "max_tokens": 300})


def test_model_with_an_adapter_and_one_without_are_told_apart(adapted: Any) -> None:
    made, _, sae, _ = adapted
    with pytest.raises(UnsupportedError, match="has an adapter already"):
        adapt_to_sae(made, sae, TEXTS, **QUICK)
    with pytest.raises(ConfigError, match="the model has no adapter"):
        evaluate_sae(tiny_model("mixtral"), sae, TEXTS, tiny_tokenizer(), with_adapter=True)
    with pytest.raises(DataError, match="no token to train on"):
        adapt_to_sae(tiny_model("mixtral"), sae, [], **QUICK)
