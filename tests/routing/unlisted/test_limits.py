"""What `register_routers` must not take for a rule, and must take back when the model is refused after all."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.nn import functional

from hf_mote import find_routers, register_routers
from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.registry import rule_for


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = 8, 2
        self.weight = nn.Parameter(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden.reshape(-1, hidden.shape[-1]) @ self.weight.T
        weights, indices = logits.topk(self.top_k)
        return logits, weights.softmax(dim=-1), indices


def model_of(router: type[nn.Module]) -> nn.Module:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate = router()
    return model


def test_register_routers_refuses_a_router_that_limits_the_tokens_of_an_expert() -> None:
    class Limited(_Plain):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, indices = super().forward(hidden)
            over = functional.one_hot(indices, self.num_experts).sum(1).cumsum(0) > 400
            return logits, weights * ~over.gather(1, indices), indices

    with pytest.raises(UnsupportedError, match="no rule reproduces"):
        register_routers(model_of(Limited))


def test_register_routers_takes_back_what_it_registered_when_the_model_is_refused() -> None:
    class Twice(_Plain):
        pass

    model = model_of(Twice)
    model.model.layers[0].mlp.extra = Twice()
    with pytest.raises(UnsupportedError):
        register_routers(model)
    assert rule_for(Twice()) is None
    del model.model.layers[0].mlp.extra
    assert len(register_routers(model)) == len(find_routers(model)) == 3


def test_rule_of_a_registered_class_is_not_that_of_a_subclass_with_another_forward() -> None:
    class Known(_Plain):
        pass

    class Same(Known):
        pass

    class Other(Known):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, _, indices = super().forward(hidden)
            return logits, logits.sigmoid().gather(1, indices), indices

    register_routers(model_of(Known))
    assert rule_for(Same()) is rule_for(Known()) is not None
    assert rule_for(Other()) is None
