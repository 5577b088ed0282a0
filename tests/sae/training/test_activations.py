"""`collect_activations`: what the model computes, shuffled and resumable, what is asked for left out and counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from hf_mote import SAETrainer, SAETrainingArguments, TopKSAEConfig, TopKSAEModel, collect_activations
from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.sae.hookpoints import resolve_hookpoints
from hf_mote.sae.register import sae_class

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "it"]
TEXTS = [" ".join(WORDS[i % 7 :] + WORDS[: i % 5]) + f" number {i}." for i in range(40)]
LAYER = "model.layers.1.output"


def stream(hookpoints: Any = LAYER, *, dataset: Any = TEXTS, model: Any = None, **overrides: Any) -> Any:
    settings = {"batch_size": 32, "context_length": 16, "sequences_per_forward": 4, "window_tokens": 256, **overrides}
    return collect_activations(model or tiny_model("mixtral"), tiny_tokenizer(), dataset, hookpoints, **settings)


def rows(found: Any) -> torch.Tensor:
    return torch.cat([batch["activations"] for batch in found])


def in_order(values: torch.Tensor) -> torch.Tensor:
    return torch.unique(values, dim=0, return_counts=True)[0]


def reference(texts: list[str] = TEXTS, *, layer: int = 1, context: int = 16) -> torch.Tensor:
    """All tokens of the packed text through the whole model, one context at a time."""
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    held: list[int] = []
    for text in texts:
        held += ([tokenizer.eos_token_id] if held else []) + tokenizer(text)["input_ids"]
    found = []
    for start in range(0, len(held), context):
        with torch.no_grad():
            output = model(torch.tensor([held[start : start + context]]), output_hidden_states=True)
        found.append(output.hidden_states[layer + 1][0])
    return torch.cat(found)


def test_stream_holds_the_model_s_activations_each_once() -> None:
    expected = reference()
    found = rows(stream(window_tokens=0, batch_size=1))
    torch.testing.assert_close(found, expected)
    shuffled = rows(stream(batch_size=1))
    assert torch.equal(in_order(shuffled), in_order(found))
    assert len(shuffled) == len(found)
    assert not torch.equal(shuffled, found)


def test_stream_passes_differ_in_order_only_and_seeds_too() -> None:
    source = stream(batch_size=1)
    first, second = rows(source), rows(source)
    assert not torch.equal(first, second)
    assert torch.equal(in_order(first), in_order(second))
    assert torch.equal(rows(stream(batch_size=1)), first)
    assert not torch.equal(rows(stream(batch_size=1, seed=1)), first)


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 20, 43, 44, 60])
@pytest.mark.parametrize("settings", [{}, {"max_tokens": 640}, {"max_norm": 1.5, "normalize": True, "prefetch": True}])
def test_a_stream_stopped_anywhere_goes_on_with_the_very_same_batches(stop: int, settings: dict[str, Any]) -> None:
    def several(source: Any, count: int) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        while len(found) < count:
            for batch in source:
                found.append(batch["activations"])
                if len(found) == count:
                    break
        return found

    whole = several(stream(**settings), stop + 6)
    first = stream(**settings)
    several(first, stop)
    second = stream(**settings)
    second.load_state_dict(first.state_dict())
    for one, other in zip(several(second, 6), whole[stop:], strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_stream_is_refused_by_what_differs() -> None:
    state = stream(seed=1).state_dict()
    with pytest.raises(ConfigError, match=r"other settings: seed \(got 0, expected 1\)"):
        stream().load_state_dict(state)


def test_several_hookpoints_give_a_record_for_each_of_the_same_tokens() -> None:
    names = ["model.layers.*.output", "model.layers.1.mlp.gate.input", "model.layers.1.mlp.gate.output"]
    source = stream(names, window_tokens=0, batch_size=8)
    assert source.hookpoints == [
        "model.layers.0",
        "model.layers.1",
        "model.layers.1.mlp.gate.input",
        "model.layers.1.mlp.gate",
        "model.layers.2",
    ]
    batch = next(iter(source))
    assert list(batch) == source.hookpoints
    for layer in range(2):
        torch.testing.assert_close(batch[f"model.layers.{layer}"]["activations"], reference(layer=layer)[:8])
    router = tiny_model("mixtral").model.layers[1].mlp.gate
    logits = batch["model.layers.1.mlp.gate.input"]["activations"] @ router.weight.T
    given = batch["model.layers.1.mlp.gate"]["activations"]
    assert given.shape == (8, 8)
    torch.testing.assert_close(given.softmax(-1), logits.softmax(-1))


def test_the_output_of_the_routed_experts_is_a_hookpoint() -> None:
    points = ["model.layers.1.mlp.experts.output", "model.layers.1.mlp.output"]
    batch = next(iter(stream(points, window_tokens=0, batch_size=20)))
    experts, block = (batch[name.removesuffix(".output")]["activations"] for name in points)
    # Without shared experts a block returns what its experts do.
    assert experts.shape == (20, 32)
    torch.testing.assert_close(experts, block)
    assert bool(experts.abs().sum() > 0)


def test_a_data_set_that_streams_gives_what_a_list_gives() -> None:
    streamed = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    source, listed = stream(dataset=streamed), stream()
    for _ in range(2):
        assert torch.equal(rows(source), rows(listed))


def test_transcoders_get_targets_of_the_same_tokens() -> None:
    batch = next(iter(stream("model.layers.1.mlp.input", targets="model.layers.1.mlp.output", window_tokens=64)))
    assert batch.keys() == {"activations", "targets"}
    mlp = tiny_model("mixtral").model.layers[1].mlp
    with torch.no_grad():
        expected = mlp(batch["activations"][None])[0]
    torch.testing.assert_close(batch["targets"], expected)


def test_the_model_runs_no_further_than_the_last_hookpoint_and_is_left_as_it_was() -> None:
    model, ran = tiny_model("mixtral"), []
    before = model(torch.tensor([[5, 6, 7]])).logits
    model.train()
    source = stream("model.layers.0.output", model=model)
    next(iter(source))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    handle = model.model.layers[1].register_forward_hook(lambda *_: ran.append(1))
    next(iter(stream("model.layers.0.output", model=model)))
    assert ran  # somebody listens
    handle.remove()
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)


def test_what_is_asked_for_is_left_out_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    source = stream(batch_size=1, exclude_special_tokens=True, exclude_positions="first:2")
    kept = len(rows(source))
    lengths = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS) + len(TEXTS) - 1
    contexts = -(-lengths // 16)
    specials = len(TEXTS) - 1
    assert source.counts["special"] == specials
    assert source.counts["kept"] == kept
    assert source.counts["kept"] + source.counts["special"] + source.counts["position"] == lengths
    assert contexts * 2 - specials <= source.counts["position"] <= contexts * 2
    padded = stream(batch_size=1, packed=False)
    assert len(rows(padded)) == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def test_attention_sinks_are_left_out_by_their_length() -> None:
    everything = rows(stream(batch_size=1, window_tokens=10**6, context_length=16))
    lengths = everything.norm(dim=1)
    source = stream(batch_size=1, window_tokens=10**6, max_norm=1.2)
    found = rows(source)
    assert found.norm(dim=1).max() <= 1.2 * lengths.median()
    assert source.counts["norm"] == int((lengths > 1.2 * lengths.median()).sum()) > 0


def test_rows_of_messages_token_ids_and_texts_are_read() -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    settings = {"batch_size": 1, "window_tokens": 0, "packed": False}
    for dataset in ([{"messages": messages}], [{"input_ids": ids}], [{"text": text}], [text], [{"body": text}]):
        column = "body" if isinstance(dataset[0], dict) and "body" in dataset[0] else "text"
        assert len(rows(stream(dataset=dataset, text_column=column, **settings))) == len(ids)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"hookpoints": "model.layer.1.output"}, UnknownNameError, "model.layers"),
        (
            {"hookpoints": "model.layers.9.output"},
            UnknownNameError,
            r"hookpoints: unknown name .*expected model\.layers\.0 to model\.layers\.2",
        ),
        ({"hookpoints": "model.leyers.1.output"}, UnknownNameError, "hookpoints: unknown name"),
        ({"dataset": []}, DataError, "holds no batch of tokens"),
        ({"dataset": TEXTS[:1], "batch_size": 500}, DataError, "expected batch_size = 500 or more"),
        ({"dataset": [{"body": "text"}]}, DataError, "has no text in column 'text'"),
        ({"dataset": [3]}, DataError, "row 0: must be a text or a row"),
        ({"dataset": iter(TEXTS)}, ConfigError, "cannot be gone through again"),
        ({"exclude_positions": "last:3"}, ConfigError, "exclude_positions: must be a range"),
        ({"exclude_positions": "0:16"}, DataError, "left out {'position'"),
        ({"batch_size": 0}, ConfigError, "batch_size: out of range"),
        ({"max_tokens": 3}, ConfigError, "max_tokens: out of range"),
        ({"max_norm": 0.0}, ConfigError, "max_norm: must be a number"),
        (
            {"hookpoints": "model.layers.*.output", "targets": "lm_head.output"},
            ConfigError,
            "from one hookpoint to one",
        ),
        ({"hookpoints": "model.rotary_emb.output"}, DataError, "has not one row for each token"),
        ({"hookpoints": "model.layers.1.mlp.gate.output[7]"}, DataError, "has fewer outputs"),
    ],
)
def test_what_cannot_be_is_refused(overrides: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        next(iter(stream(**overrides)))


def test_activations_that_are_not_finite_are_refused_by_the_hookpoint() -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="model.layers.1: the model's activations hold NaN"):
        next(iter(stream(model=model)))


def test_hookpoints_are_named_canonically_and_in_the_order_of_the_model() -> None:
    model = tiny_model("mixtral")
    points = resolve_hookpoints(
        model, ["model.layers.2.output", "model.layers.0", "model.layers.2.mlp.gate.output[1]"]
    )
    assert [point.name for point in points] == [
        "model.layers.0",
        "model.layers.2",
        "model.layers.2.mlp.gate.output[1]",
    ]


def trained(folder: Path, *, steps: int, resume: bool = False, **settings: Any) -> tuple[Any, list[float]]:
    torch.manual_seed(0)
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=64, k=4))
    settings = {"normalize": True, **settings}
    source = stream(**settings)
    arguments = SAETrainingArguments(
        str(folder), max_steps=steps, save_steps=3, save_strategy="steps", logging_steps=1, use_cpu=True,
        disable_tqdm=True, report_to=[], gradient_accumulation_steps=2, lr_scheduler_type="constant",
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SAETrainer(sae, arguments, train_dataset=source, eval_dataset=stream(dataset=TEXTS[:9], **settings))
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_on_a_stream_resumed_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole, losses = trained(tmp_path / "whole", steps=40)
    trained(tmp_path / "run", steps=21)
    resumed, again = trained(tmp_path / "run", steps=40, resume=True)
    assert again[-19:] == losses[-19:]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_trained_on_a_scaled_stream_an_sae_is_for_the_model_s_own_activations(tmp_path: Path) -> None:
    trainer, losses = trained(tmp_path, steps=30)
    assert losses[-1] < losses[0] <= 1
    x = reference(TEXTS[:9])
    with torch.no_grad():
        output = trainer.model.eval()(x)
    # Scales are folded, and evaluation after training is of unscaled activations.
    metrics = trainer.evaluate()
    assert metrics["eval_fvu"] == pytest.approx(float(output.fvu), rel=0.05)
    assert output.fvu < 0.6
    assert not trainer.train_dataset.scales


def test_each_dimension_is_scaled_to_a_variance_of_one() -> None:
    source = stream(normalize="per_dimension", window_tokens=4096, batch_size=8)
    found = rows(source)
    (scale,) = source.scales.values()
    assert len(scale) == 32
    plain = rows(stream(window_tokens=4096, batch_size=8))
    torch.testing.assert_close(found, plain * torch.tensor(scale))
    assert ((found.double().var(0, correction=0) - 1).abs() < 0.05).all()


@pytest.mark.parametrize(("architecture", "unit_rows"), [("topk", False), ("relu", True), ("feature_choice", True)])
def test_trained_on_scaled_dimensions_an_sae_is_for_the_model_s_own_activations(
    architecture: str, unit_rows: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fields = {} if architecture == "relu" else {"k": 4}
    sae = sae_class(f"{architecture}_sae")(
        sae_class(f"{architecture}_sae").config_class(hidden_size=32, num_latents=64, **fields)
    )
    arguments = SAETrainingArguments(
        str(tmp_path), max_steps=20, use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    source = stream(normalize="per_dimension")
    kept: dict[str, Any] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 20:
                kept["sae"], kept["scale"] = copy.deepcopy(sae).eval(), torch.tensor(*source.scales.values())

    SAETrainer(sae, arguments, train_dataset=source, callbacks=[Keep()]).train()
    x = reference(TEXTS[:9])
    with torch.no_grad():
        expected = kept["sae"](x * kept["scale"]).reconstruction / kept["scale"]
        torch.testing.assert_close(sae.eval()(x).reconstruction, expected, rtol=1e-3, atol=1e-4)
    assert sae.config.normalize_decoder == unit_rows
    assert bool((sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-5) == unit_rows
    assert not source.scales


def test_scaled_dimensions_of_saes_that_measure_their_rows_are_refused_at_once(tmp_path: Path) -> None:
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=64, k=4, scale_latents_by_decoder_norm=True))
    arguments = SAETrainingArguments(str(tmp_path), max_steps=1, use_cpu=True)
    with pytest.raises(ConfigError, match="does not go with activations normalised per dimension"):
        SAETrainer(sae, arguments, train_dataset=stream(normalize="per_dimension"))


def test_a_run_on_scaled_dimensions_resumed_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole, losses = trained(tmp_path / "whole", steps=8, normalize="per_dimension")
    trained(tmp_path / "run", steps=5, normalize="per_dimension")
    resumed, again = trained(tmp_path / "run", steps=8, resume=True, normalize="per_dimension")
    assert again[-3:] == losses[-3:]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_max_tokens_gives_the_stream_a_length_and_the_trainer_its_steps(tmp_path: Path) -> None:
    source = stream(max_tokens=256)
    assert len(source) == 8
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=64, k=4))
    arguments = SAETrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = SAETrainer(sae, arguments, train_dataset=source)
    trainer.train()
    assert trainer.state.global_step == 16
    with pytest.raises(TypeError):
        len(stream())
