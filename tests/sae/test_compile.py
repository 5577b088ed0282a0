"""`torch.compile`: the same numbers, evaluation in one graph, training with as many as it takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from tiny_saes import HIDDEN, SOME_SAES, TinySAE, activations

# Dynamo's own: it looks at `.grad` of what is no leaf, and makes an object of a class of static methods.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
]
some_saes = pytest.mark.parametrize("sae", SOME_SAES, ids=str)


@pytest.fixture(autouse=True)
def no_graphs_left() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@some_saes
def test_compiled_evaluation_is_one_graph_and_equals_eager(sae: TinySAE) -> None:
    model = sae.model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batch = sae.batch(40)
    with torch.no_grad():
        expected = model(**batch, output_latents=True)
        output = compiled(**batch, output_latents=True)
        latents = torch.compile(model.encode, backend="eager", fullgraph=True)(batch["activations"])
    assert list(output) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(latents, expected.latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sae", [TinySAE(name, "skip_transcoder") for name in ("relu", "gated", "jumprelu")], ids=str)
def test_compiled_training_step_equals_eager(sae: TinySAE) -> None:
    compare_steps(sae, masked=False)


@pytest.mark.parametrize("sae", [sae for sae in SOME_SAES if hasattr(sae.config(), "k")], ids=str)
def test_compiled_training_step_that_selects_equals_eager_with_padding(sae: TinySAE) -> None:
    compare_steps(sae, masked=True)


def compare_steps(sae: TinySAE, *, masked: bool) -> None:
    """Assert that two training steps of a compiled model give what they give uncompiled."""
    model = sae.model(torch.float64, dead_after_tokens=30).train()
    model.tokens_since_fired[:6] = 30
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[0, 2:] = 0
    for seed in (1, 2):
        batch = {**sae.batch(4, 10, dtype=torch.float64, seed=seed), "attention_mask": mask if masked else None}
        expected, output = reference(**batch), compiled(**batch)
        for name, value in expected.items():
            torch.testing.assert_close(output[name], value, msg=lambda m, n=name: f"{n}: {m}")
        expected.loss.backward()
        output.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference.get_parameter(name).grad, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], msg=lambda m, n=name: f"{n}: {m}")


def test_compiled_model_sees_thresholds_that_are_calibrated_later() -> None:
    model = TinySAE("mutual_choice", "autoencoder").model()
    compiled = torch.compile(model.encode, backend="eager")
    x = activations(30, HIDDEN)
    before = compiled(x)
    model.calibrate_threshold(x * 3)
    assert torch.equal(compiled(x), model.encode(x))
    assert not torch.equal(compiled(x), before)


def test_compiled_model_that_is_not_calibrated_is_refused_until_it_is() -> None:
    model = TinySAE("feature_choice", "autoencoder").model(calibrated=False)
    compiled = torch.compile(model.encode, backend="eager")
    x = activations(30, HIDDEN)
    with pytest.raises(RuntimeError, match="has no threshold yet"):
        compiled(x)
    model.calibrate_threshold(x)
    assert torch.equal(compiled(x), model.encode(x))
