"""The same on a GPU: one training step equals the CPU's, and a token alone equals the token in a batch."""

from __future__ import annotations

import pytest
import torch
from tiny_saes import HIDDEN, SOME_SAES, TinySAE, activations

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("sae", SOME_SAES, ids=str)]


def test_training_step_on_a_gpu_equals_the_one_on_the_cpu(sae: TinySAE) -> None:
    here = sae.model(torch.float64, dead_after_tokens=20).train()
    there = sae.model(torch.float64, dead_after_tokens=20).cuda().train()
    mask = torch.ones(4, 10)
    mask[0, 5:] = 0
    for seed in (1, 2):
        batch = {**sae.batch(4, 10, dtype=torch.float64, seed=seed), "attention_mask": mask}
        expected = here(**batch)
        output = there(**{name: value.cuda() for name, value in batch.items()})
        for name, value in expected.items():
            torch.testing.assert_close(output[name].cpu(), value, msg=lambda m, n=name: f"{n}: {m}")
        expected.loss.backward()
        output.loss.backward()
    for name, parameter in there.named_parameters():
        torch.testing.assert_close(
            parameter.grad.cpu(), here.get_parameter(name).grad, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, value in there.state_dict().items():
        torch.testing.assert_close(value.cpu(), here.state_dict()[name], msg=lambda m, n=name: f"{n}: {m}")


def test_encode_on_a_gpu_of_a_token_alone_equals_the_token_in_a_batch(sae: TinySAE) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = sae.model(dtype).cuda()
        if hasattr(model, "is_calibrated"):
            model.calibrate_threshold(activations(300, HIDDEN, dtype=dtype).cuda())
        x = activations(600, HIDDEN, dtype=dtype).cuda()
        together = model.encode(x)
        for i in (0, 255, 256, 599):
            assert torch.equal(model.encode(x[i : i + 1])[0], together[i])
