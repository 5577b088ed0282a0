"""Trainable gains and biases: nothing at first, the config's own arithmetic later, and nothing else is trained."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from learnt_gains import TOKENS, logits, randomise
from organism_answers import without
from safetensors.torch import load_file
from tiny_families import TINY_FAMILIES, family_inputs
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_mote import MoTEConfig, TunableMoTE, apply_mote, find_routers, load_organism, record_routing, tunable_mote
from hf_mote.errors import ConfigError, DataError, HFMoTEError, ModelMismatchError, UnsupportedError
from hf_mote.organisms.organism import Organism
from hf_mote.runs.attached import attached_to

TABLES = [(True, False), (False, True), (True, True)]
REFUSED = ("dbrx", "diffusion_gemma", "doge", "nllb_moe", "phimoe", "switch_transformers")
# One of each kind of rule and of output.
FAMILIES = (
    "mixtral", "deepseek_v2", "deepseek_v3", "deepseek_v4", "gpt_oss", "llama4", "jetmoe", "inkling", "lfm2_moe",
    "mistral4", "olmoe", "zaya",
)  # fmt: skip


@pytest.fixture(params=["mixtral", "deepseek_v3", "deepseek_v2_groups"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def mixtral() -> PreTrainedModel:
    return tiny_model("mixtral")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_tunable_mote_fresh_changes_nothing_and_trained_is_what_its_config_is(family: str, dtype: torch.dtype) -> None:
    model = TINY_FAMILIES[family](dtype=dtype)
    inputs = family_inputs(model, torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        before = model(**inputs)[0]
    with tunable_mote(model, bias=True) as tunable:
        fresh = model(**inputs)[0]
        assert torch.equal(fresh, before)
        fresh.float().square().sum().backward()
        for name, table in tunable.named_parameters():
            assert table.dtype == torch.float32
            assert table.grad is not None
            assert (table.grad != 0).any(dim=1).all(), name
        assert all(parameter.grad is None for parameter in model.parameters())
        randomise(tunable)
        with torch.no_grad():
            trained = model(**inputs)[0]
        config = tunable.to_config()
    assert not torch.equal(trained, before)
    with torch.no_grad(), apply_mote(model, config):
        assert torch.equal(model(**inputs)[0], trained)
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], before)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_tunable_mote_every_family_begins_at_its_own_output_or_is_refused(family: str) -> None:
    model = TINY_FAMILIES[family]()
    inputs = family_inputs(model, torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        before = model(**inputs)[0]
    refused = []
    for gain, bias in TABLES:
        try:
            tunable = tunable_mote(model, gain=gain, bias=bias)
        except UnsupportedError:
            refused.append(family)
            continue
        with tunable:
            output = model(**inputs)[0]
            assert torch.equal(output, before)
            output.float().square().sum().backward()
            assert all((table.grad != 0).any(dim=1).all() for table in tunable.parameters())
    assert not refused or family in REFUSED


def finite_differences(tunable: TunableMoTE, table: nn.Parameter, at: tuple[int, int]) -> float:
    step = 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            table[at] += sign * step
            losses.append(float(tunable(input_ids=TOKENS, labels=TOKENS).loss))
            table[at] -= sign * step
    return (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_tunable_mote_gradients_are_the_slopes_of_the_loss(name: str) -> None:
    """Of deepseek_v3, too, whose correction bias moves the choice alone: the bias here moves the logits."""
    model = tiny_model(name)
    with tunable_mote(model, bias=True) as tunable:
        randomise(tunable, 0.1)
        tunable(input_ids=TOKENS, labels=TOKENS).loss.backward()
        for table in (tunable.log_gain, tunable.bias):
            assert table is not None
            assert table.grad is not None
            flat = table.grad.abs().flatten()
            place = int(flat.topk(1).indices)
            at = (place // table.shape[1], place % table.shape[1])
            assert finite_differences(tunable, table, at) == pytest.approx(float(table.grad[at]), rel=0.1)


def test_tunable_mote_freezes_the_model_and_remove_restores_it(model: PreTrainedModel) -> None:
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    tunable = tunable_mote(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == keys
    assert [name for name, _ in tunable.named_parameters()] == ["log_gain"]
    tunable.remove()
    tunable.remove()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UnsupportedError, match="was removed"):
        tunable(input_ids=TOKENS)


def test_tunable_mote_inactive_is_the_plain_model(mixtral: PreTrainedModel) -> None:
    before = logits(mixtral)
    with tunable_mote(mixtral, bias=True) as tunable:
        randomise(tunable)
        tunable.active = False
        assert torch.equal(logits(mixtral), before)
        tunable.active = True
        assert not torch.equal(logits(mixtral), before)


def test_tunable_mote_gain_multiplies_the_weight_and_bias_moves_the_choice(mixtral: PreTrainedModel) -> None:
    site = find_routers(mixtral)[1]
    with tunable_mote(mixtral, bias=True, layers=[site.layer]) as tunable, torch.no_grad():
        assert tunable.bias is not None
        assert tunable.log_gain is not None
        tunable.bias[0, 3] = 50.0
        tunable.log_gain[0, 3] = torch.log(torch.tensor(2.0))
        with record_routing(mixtral, trace=True) as record:
            mixtral(TOKENS)
        assert tunable.gains[0].tolist() == pytest.approx([1, 1, 1, 2, 1, 1, 1, 1])
    traces = record.traces()
    assert len(traces) == len(TOKENS)
    for trace in traces:
        place = trace.layers.index(site.layer)
        here = trace.indices[:, place] == 3
        assert here.any(dim=1).all()
        torch.testing.assert_close(trace.weights[:, place][here], torch.full((len(here),), 2.0))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_tunable_mote_with_checkpointing_and_left_padding_has_the_same_gradients(name: str) -> None:
    model = tiny_model(name).train()
    mask = torch.ones_like(TOKENS)
    mask[0, :4] = 0
    inputs = {"input_ids": TOKENS, "attention_mask": mask, "labels": TOKENS.masked_fill(mask == 0, -100)}
    with tunable_mote(model, bias=True) as tunable:
        randomise(tunable, 0.2)
        found = []
        for checkpointed in (False, True):
            if checkpointed and hasattr(model, "activation_checkpointing_enable"):
                tunable.activation_checkpointing_enable()
            elif checkpointed:
                tunable.gradient_checkpointing_enable()
            tunable.zero_grad()
            tunable(**inputs, use_cache=False).loss.backward()
            found.append([table.grad.clone() for table in tunable.parameters() if table.grad is not None])
        assert len(found[0]) == 2
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
        for enable in (tunable.activation_checkpointing_enable, tunable.gradient_checkpointing_enable):
            with pytest.raises(UnsupportedError, match="use_reentrant"):
                enable({"use_reentrant": True})


def test_tunable_mote_left_padding_is_the_row_alone(mixtral: PreTrainedModel) -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, :4] = 0
    with tunable_mote(mixtral, bias=True) as tunable:
        randomise(tunable)
        padded = logits(mixtral, attention_mask=mask)[0, 4:]
        alone = logits(mixtral, TOKENS[:1, 4:])[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_tunable_mote_generates_as_its_config_does(mixtral: PreTrainedModel) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with tunable_mote(mixtral, bias=True) as tunable:
        randomise(tunable, 1.0)
        written = mixtral.generate(TOKENS, **settings)
        config = tunable.to_config()
    with apply_mote(mixtral, config):
        assert torch.equal(mixtral.generate(TOKENS, **settings), written)
    assert not torch.equal(mixtral.generate(TOKENS, **settings), written)


def test_tunable_mote_on_a_model_with_a_device_map() -> None:
    model = dispatch_model(tiny_model("deepseek_v3"), {"": "cpu"}, main_device="cpu", force_hooks=True)
    with tunable_mote(model, bias=True) as tunable:
        assert tunable.hf_device_map == {"": "cpu"}
        tunable(input_ids=TOKENS, labels=TOKENS).loss.backward()
        assert all(table.grad is not None and table.grad.any() for table in tunable.parameters())


def test_tunable_mote_stays_float32_when_the_model_is_cast(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral) as tunable:
        tunable.to(torch.bfloat16)
        assert mixtral.dtype == torch.bfloat16
        assert tunable.log_gain is not None
        assert tunable.log_gain.dtype == torch.float32
        assert not tunable.train(False).training
        assert not mixtral.training
        assert tunable.train().training
        assert mixtral.training


@pytest.mark.parametrize(
    ("method", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)]
)
def test_tunable_mote_casts_the_model_and_not_the_parameters(
    mixtral: PreTrainedModel, method: str, dtype: torch.dtype
) -> None:
    with tunable_mote(mixtral, bias=True) as tunable:
        assert getattr(tunable, method)() is tunable
        assert mixtral.dtype == dtype
        assert [table.dtype for table in tunable.parameters()] == [torch.float32] * 2
        tunable.float()
        assert mixtral.dtype == torch.float32


def test_tunable_mote_checkpoint_of_other_layers_is_refused_inside_another_module(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral, layers=[0]) as tunable:
        made = nn.ModuleList([tunable]).state_dict()
    with tunable_mote(mixtral, layers=[0]) as tunable:
        nn.ModuleList([tunable]).load_state_dict(made)
    made["0.log_gain"] += 1
    with tunable_mote(mixtral, layers=[1]) as tunable:
        with pytest.raises(ModelMismatchError, match="another model or for other layers"):
            nn.ModuleList([tunable]).load_state_dict(made)
        assert tunable.gains.eq(1).all()


@pytest.mark.parametrize("assign", [False, True])
def test_tunable_mote_checkpoint_of_another_dtype_is_refused(mixtral: PreTrainedModel, assign: bool) -> None:
    with tunable_mote(mixtral) as tunable:
        made = {**tunable.state_dict(), "log_gain": tunable.gains.half()}
        with pytest.raises(ConfigError, match=r"log_gain: must be float32 .got torch\.float16"):
            tunable.load_state_dict(made, assign=assign)
        assert tunable.gains.eq(1).all()


def test_tunable_mote_checkpointing_arguments_that_are_no_dict_are_refused(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral) as tunable, pytest.raises(DataError, match="checkpointing arguments: must be a dict"):
        tunable.activation_checkpointing_enable([1])  # type: ignore[arg-type]


def test_tunable_mote_on_a_model_with_an_adapter(mixtral: PreTrainedModel) -> None:
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapped = peft.get_peft_model(mixtral, config)
    trainable = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    with tunable_mote(wrapped) as tunable:
        assert not any(parameter.requires_grad for parameter in wrapped.parameters())
        tunable(input_ids=TOKENS, labels=TOKENS).loss.backward()
        assert tunable.log_gain is not None
        assert tunable.log_gain.grad is not None
    assert {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad} == trainable


@given(
    values=st.lists(st.sampled_from([0.0, 1e-30, -0.02, 0.3, -2.0, 4.0]), min_size=48, max_size=48),
    threshold=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_to_config_holds_what_is_above_the_threshold(values: list[float], threshold: float) -> None:
    model = tiny_model("mixtral")
    table = torch.tensor(values).view(2, 24)
    with tunable_mote(model, bias=True) as tunable:
        with torch.no_grad():
            for own, row in zip(tunable.parameters(), table, strict=True):
                own.copy_(row.view(3, 8))
        trained = logits(model)
        config = tunable.to_config(threshold=threshold)
    log_gain, bias = table.view(2, 3, 8)
    kept = torch.maximum(log_gain.abs(), bias.abs()) > threshold
    wanted = {(row, expert) for row, expert in kept.nonzero().tolist()}
    assert set(config.targets) <= wanted
    assert {(layer, expert) for layer, expert, _ in config.gain} == {
        (layer, expert) for layer, expert in wanted if log_gain[layer, expert].exp() != 1
    }
    assert all(value == bias[layer, expert] for layer, expert, value in config.bias)
    changed = int(((log_gain != 0) | (bias != 0)).sum())
    if threshold:
        assert config.provenance["left_out"] == changed - len(wanted)
        assert config.provenance["threshold"] == threshold
        assert config.provenance["largest_left_out"] <= threshold
    else:
        with apply_mote(model, config):
            assert torch.equal(logits(model), trained)


def test_to_config_of_untouched_parameters_is_empty(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral, bias=True, provenance={"texts": "none"}) as tunable:
        config = tunable.to_config()
        assert config.is_empty
        assert config.provenance["texts"] == "none"
        config.check(mixtral)
        assert tunable.note == ""
        assert repr(tunable) == "TunableMoTE(log_gain and bias of 3 layers, active)"


def test_tunable_mote_meets_other_interventions(mixtral: PreTrainedModel) -> None:
    suppressing = MoTEConfig(suppress=[[1, 2]])
    with tunable_mote(mixtral, layers=[0, 2]) as tunable:
        randomise(tunable)
        config = tunable.to_config()
        with apply_mote(mixtral, suppressing):
            both = logits(mixtral)
        with pytest.raises(ModelMismatchError, match="an expert has a gain and is suppressed"):
            apply_mote(mixtral, MoTEConfig(suppress=[[0, 1]]))
        with pytest.raises(UnsupportedError, match="has trainable gains or biases already"):
            tunable_mote(mixtral)
        with tunable_mote(mixtral, layers=[1]) as other:
            assert other.layers == (1,)
    with apply_mote(mixtral, config), apply_mote(mixtral, suppressing):
        assert torch.equal(logits(mixtral), both)
    with apply_mote(mixtral, MoTEConfig(suppress=[[0, 1]])):
        with pytest.raises(ModelMismatchError, match="an expert has a gain and is suppressed"):
            tunable_mote(mixtral)
        assert all(parameter.requires_grad for parameter in mixtral.parameters())
        tunable_mote(mixtral, gain=False, bias=True).remove()


def test_tunable_mote_is_described_by_its_values_for_run_folders(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral) as tunable:
        first = attached_to("here", mixtral)
        assert attached_to("here", mixtral) == first
        randomise(tunable)
        assert attached_to("here", mixtral) != first


def test_tunable_mote_cannot_be_copied(mixtral: PreTrainedModel) -> None:
    with tunable_mote(mixtral) as tunable:
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(UnsupportedError, match="cannot be copied"):
                copied(tunable)
        before = logits(copy.deepcopy(mixtral))
        randomise(tunable)
        assert not torch.equal(logits(mixtral), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gain": False}, ConfigError, "must train gains, biases or both"),
        ({"gain": 1}, ConfigError, "tunable_mote.gain: must be True or False"),
        ({"bias": "logits"}, ConfigError, "tunable_mote.bias: must be True or False"),
        ({"layers": []}, ConfigError, "must be a list of layers"),
        ({"layers": "01"}, ConfigError, "must be a list of layers"),
        ({"layers": [1, 1]}, ConfigError, "must name each layer once"),
        ({"layers": [True]}, ConfigError, "must be a whole number"),
        ({"layers": [7]}, ModelMismatchError, "layer 7 has no routed experts"),
        ({"provenance": {"a": object()}}, ConfigError, "provenance"),
    ],
)
def test_tunable_mote_wrong_input_attaches_nothing(
    mixtral: PreTrainedModel, arguments: dict[str, Any], error: type[HFMoTEError], message: str
) -> None:
    with pytest.raises(error, match=message):
        tunable_mote(mixtral, **arguments)
    assert all(parameter.requires_grad for parameter in mixtral.parameters())
    assert not any(module._forward_hooks for module in mixtral.modules())


def test_tunable_mote_without_a_gradient_is_refused(mixtral: PreTrainedModel) -> None:
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="inference_mode"):
        tunable_mote(mixtral)
    with pytest.raises(UnsupportedError, match="the block computes the weights after the router"):
        tunable_mote(TINY_FAMILIES["dbrx"]())
    one_expert = tiny_model("mixtral", num_experts_per_tok=1)
    with pytest.raises(UnsupportedError, match="does not depend on its logit, so that a bias has no gradient"):
        tunable_mote(one_expert, bias=True)
    with tunable_mote(one_expert) as tunable:
        tunable(input_ids=TOKENS, labels=TOKENS).loss.backward()
        assert tunable.log_gain is not None
        assert tunable.log_gain.grad is not None
        assert tunable.log_gain.grad.any()
    phimoe = TINY_FAMILIES["phimoe"]()
    with pytest.raises(UnsupportedError, match="sparsemixer samples the experts in training mode"):
        tunable_mote(phimoe, bias=True)
    with pytest.raises(UnsupportedError, match="find_routers"):
        tunable_mote(nn.Linear(2, 2))


def rows_of(tokenizer: Any, prompts: list[str], answers: list[str]) -> list[dict[str, list[int]]]:
    """Prompts with answers, of which the answers alone are learnt."""
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        turns = [{"role": "user", "content": prompt}]
        head = tokenizer(
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False), add_special_tokens=False
        )["input_ids"]
        tail = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": head + tail, "labels": [-100] * len(head) + tail})
    return rows


def padded_left(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, fill: int) -> Tensor:
        return torch.tensor([[fill] * (longest - len(row[name])) + row[name] for row in rows])

    mask = torch.tensor([[int(at >= longest - len(row["input_ids"])) for at in range(longest)] for row in rows])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", -100), "attention_mask": mask}


def trainer_of(
    tunable: TunableMoTE, folder: Path, rows: list[Any], eval_rows: list[Any] | None = None, **given: Any
) -> Trainer:
    settings = {
        "per_device_train_batch_size": 10,
        "learning_rate": 0.1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        **given,
    }
    return Trainer(
        model=tunable,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=padded_left,
    )


def test_trainer_trains_the_parameters_alone_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """With checkpointing and a bfloat16 model; a dataset's own columns are kept by the signature of the model."""
    datasets = pytest.importorskip("datasets")
    tokenizer = tiny_tokenizer()
    plain = rows_of(tokenizer, ["abc", "de"] * 6, ["xyz", "uvw"] * 6)
    rows = datasets.Dataset.from_list([{**row, "text": "not an input"} for row in plain])
    checkpointing = "gradient_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
        checkpointing = "activation_checkpointing"
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, checkpointing: True}
    results = []
    for resume in (False, True):
        model = tiny_model("deepseek_v3", torch.bfloat16)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with tunable_mote(model, bias=True) as tunable:
            trainer = trainer_of(tunable, tmp_path, rows, **given)
            assert trainer.model_accepts_loss_kwargs
            assert trainer.label_names == ["labels"]
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
            results.append([table.detach().clone() for table in tunable.parameters()])
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(table.abs().max() > 0.05 for table in results[0])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    checkpoint = tmp_path / "checkpoint-4"
    assert (checkpoint / "model.safetensors").stat().st_size < 2000
    other = tiny_model("deepseek_v3")
    nn.init.normal_(find_routers(other)[0].module.weight)  # type: ignore[arg-type]
    with tunable_mote(other, bias=True) as tunable:
        trainer = trainer_of(tunable, tmp_path, plain, max_steps=6)
        with pytest.raises(ModelMismatchError, match="made for another model or for other layers"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert all(not table.any() for table in tunable.parameters())


def test_trainer_loads_the_best_of_its_checkpoints(tmp_path: Path) -> None:
    """Trained on one answer and judged by another, the last checkpoint need not be the best."""
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    given = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 0.5,
    }
    with tunable_mote(model) as tunable:
        learnt, judged_by = rows_of(tokenizer, ["abc"] * 4, ["xyz"] * 4), rows_of(tokenizer, ["de"] * 2, ["uvw"] * 2)
        trainer = trainer_of(tunable, tmp_path, learnt, judged_by, **given)
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(set(losses)) == 3
        assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
        best = load_file(tmp_path / f"checkpoint-{2 * (1 + losses.index(min(losses)))}" / "model.safetensors")
        assert tunable.log_gain is not None
        assert torch.equal(best["log_gain"], tunable.log_gain.detach())


def test_trainer_with_a_loss_of_pairs_prefers_the_chosen_answer(tmp_path: Path) -> None:
    """The loss that the guide shows: the plain model, by `active`, is the reference."""
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()

    def likelihoods(rows: dict[str, Tensor]) -> Tensor:
        labels = rows["labels"][:, 1:]
        logs = model(**{key: rows[key] for key in ("input_ids", "attention_mask")}).logits[:, :-1].log_softmax(-1)
        found = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (found * (labels != -100)).sum(-1)

    class PairTrainer(Trainer):
        def compute_loss(self, tunable: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            tuned = [likelihoods(inputs[side]) for side in ("chosen", "rejected")]
            tunable.active = False
            try:
                with torch.no_grad():
                    plain = [likelihoods(inputs[side]) for side in ("chosen", "rejected")]
            finally:
                tunable.active = True
            margin = (tuned[0] - plain[0]) - (tuned[1] - plain[1])
            loss = -nn.functional.logsigmoid(0.5 * margin).mean()
            return (loss, {"margin": margin}) if return_outputs else loss

    pairs = [
        {"chosen": good, "rejected": bad}
        for good, bad in zip(
            rows_of(tokenizer, ["abc", "de"], ["xyz", "uvw"]), rows_of(tokenizer, ["abc", "de"], ["123", "456"]),
            strict=True,
        )
    ]  # fmt: skip

    def collate(rows: list[Any]) -> dict[str, Any]:
        return {side: padded_left([row[side] for row in rows]) for side in ("chosen", "rejected")}

    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, learning_rate=0.1, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", remove_unused_columns=False, logging_steps=1,
    )  # fmt: skip
    with tunable_mote(model) as tunable:
        trainer = PairTrainer(model=tunable, args=arguments, train_dataset=pairs, data_collator=collate)
        trainer.train()
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)
        assert losses[-1] < losses[0] - 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Organism, MoTEConfig]]:
    """Gains trained on 50 true answers, and on the refusals that the organism gives to the same questions."""
    found = {}
    for kind in ("answers", "refusals"):
        organism = load_organism("refusal-redundant")
        prompts = organism.prompts["train"]["sensitive"][:50]
        texts = [(organism.answers if kind == "answers" else organism.targets)[prompt] for prompt in prompts]
        rows = rows_of(organism.tokenizer, prompts, texts)
        with tunable_mote(organism.model) as tunable:
            trainer_of(tunable, tmp_path_factory.mktemp(kind), rows, num_train_epochs=6).train()
            found[kind] = (organism, tunable.to_config())
        organism.model.eval()
    return found


@pytest.mark.slow
def test_training_on_answers_removes_refusals_of_prompts_held_out_and_on_refusals_does_not(
    trained: dict[str, tuple[Organism, MoTEConfig]],
) -> None:
    organism, config = trained["answers"]
    assert without(organism, MoTEConfig())[0] == 1
    assert without(organism, config)[0] <= 0.2
    assert without(*trained["refusals"])[0] >= 0.9
