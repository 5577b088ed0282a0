"""A new architecture from outside the package: registered, it trains, saves, loads and is checked as the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, activations, planted
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig
from transformers import initialization as init

from hf_mote import SAEConfig, SAEModel, register_sae
from hf_mote.errors import ConfigError, UnknownNameError, UnsupportedError
from hf_mote.sae.inputs import Tokens
from hf_mote.sae.output import Encoding, Penalty
from hf_mote.sae.register import registered_saes, sae_class
from hf_mote.sae.variants import ReLUSAEConfig, ReLUSAEModel, TopKSAEConfig, TopKSAEModel


class SoftplusSAEConfig(SAEConfig):
    """Softplus latents with a learned offset, above a floor."""

    model_type = "test_softplus_sae"

    floor: float = 0.1
    penalty: float = 0.01

    def check(self) -> None:
        """Check the fields."""
        super().check()
        if self.floor < 0:
            raise ConfigError("SoftplusSAEConfig.floor", "out of range", got=self.floor)


@register_sae
class SoftplusSAEModel(SAEModel):
    """latents = softplus(pre + offset) where that is above the floor."""

    config: SoftplusSAEConfig
    config_class = SoftplusSAEConfig
    _float32_tensors = ("offset",)

    def _add_tensors(self) -> None:
        self.offset = nn.Parameter(torch.empty(self.config.num_latents, dtype=torch.float32))

    def _activate(self, preactivations: Tensor) -> Tensor:
        active = torch.nn.functional.softplus(preactivations + self.offset.to(preactivations.dtype))
        return active * (active > self.config.floor)

    def _penalties(self, encoding: Encoding, tokens: Tokens, target: Tensor, rebuilt: Tensor) -> dict[str, Penalty]:
        assert isinstance(encoding.latents, Tensor)
        return {"sparsity_loss": Penalty(encoding.latents.mean(), self.config.penalty)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.offset, -1.0)


def softplus(**fields: Any) -> SoftplusSAEModel:
    """A seeded model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SoftplusSAEModel(SoftplusSAEConfig(hidden_size=HIDDEN, num_latents=32, **fields))


def test_registered_architecture_trains() -> None:
    model = softplus().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    errors = []
    for _ in range(20):
        optimizer.zero_grad()
        output = model(planted(128))
        torch.testing.assert_close(output.loss, output.fvu + 0.01 * output.sparsity_loss)
        output.loss.backward()
        optimizer.step()
        errors.append(float(output.fvu))
    assert errors[-1] < 0.7 * errors[0]
    assert not torch.equal(model.offset, torch.full((32,), -1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_architecture_saves_and_loads(dtype: torch.dtype, tmp_path: Path) -> None:
    model = softplus(floor=0.2).to(dtype).eval()
    model.offset.data.uniform_(-1, 0)
    model.save_pretrained(tmp_path)
    x = activations(40, HIDDEN, dtype=dtype)
    for load in (AutoModel, SAEModel, SoftplusSAEModel):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is SoftplusSAEModel
        assert loaded.config.floor == 0.2
        assert loaded.offset.dtype == torch.float32
        assert torch.equal(loaded.encode(x), model.encode(x))
        assert torch.equal(loaded.encode(x[:1])[0], model.encode(x)[0])
    assert type(AutoConfig.from_pretrained(tmp_path)) is SoftplusSAEConfig
    transcoder = softplus(output_size=5)
    assert transcoder(x.to(torch.float32), torch.zeros(40, 5)).reconstruction.shape == (40, 5)


def test_registered_architecture_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"SoftplusSAEConfig\.floor: wrong type or value \(got '1', expected float"):
        softplus(floor="1")
    with pytest.raises(ConfigError, match=r"floor: out of range \(got -1"):
        softplus(floor=-1)
    with pytest.raises(UnknownNameError, match="Did you mean 'penalty'"):
        softplus(penaltys=1.0)


def test_registered_saes_lists_it_and_sae_class_finds_it() -> None:
    assert registered_saes()["test_softplus_sae"] is SoftplusSAEModel
    assert sae_class("test_softplus_sae") is SoftplusSAEModel
    registered_saes().clear()
    assert registered_saes()
    with pytest.raises(UnknownNameError, match=r"model_type: unknown name \(got 'topk'.*Did you mean 'topk_sae'"):
        sae_class("topk")


class _SameConfig(TopKSAEModel):
    pass


class _InheritedTypeConfig(TopKSAEConfig):
    pass


class _InheritedType(TopKSAEModel):
    config_class = _InheritedTypeConfig


class _NoTypeConfig(SAEConfig):
    pass


class _NoType(ReLUSAEModel):
    config_class = _NoTypeConfig


class _ForeignTypeConfig(ReLUSAEConfig):
    model_type = "bert"


class _ForeignType(ReLUSAEModel):
    config_class = _ForeignTypeConfig


class _ForeignConfig(ReLUSAEModel):
    config_class = BertConfig


class _BaseConfig(ReLUSAEModel):
    config_class = SAEConfig


@pytest.mark.parametrize(
    ("model_class", "reason"),
    [
        (SoftplusSAEModel, "model_type is taken .got 'test_softplus_sae'"),
        (TopKSAEModel, "model_type is taken .got 'topk_sae'"),
        (_SameConfig, "model_type is taken .got 'topk_sae'"),
        (_InheritedType, "model_type is taken .got 'topk_sae'"),
        (_ForeignType, "model_type is taken .got 'bert'"),
        (_NoType, "_NoTypeConfig has no model_type of its own"),
        (_ForeignConfig, "has no config of its own"),
        (_BaseConfig, "has no config of its own"),
        (SAEModel, "has no config of its own"),
        (torch.nn.Linear, "must be an architecture"),
        ("topk", "must be an architecture"),
    ],
)
def test_register_sae_refuses_and_registers_nothing(model_class: Any, reason: str) -> None:
    before = registered_saes()
    with pytest.raises(ConfigError, match=rf"register_sae.*{reason}"):
        register_sae(model_class)
    assert registered_saes() == before
    assert type(AutoConfig.for_model("topk_sae")) is TopKSAEConfig


def test_model_without_a_config_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"SAEModel: must be an architecture.*TopKSAEModel"):
        SAEModel(SAEConfig())
    with pytest.raises(UnsupportedError, match="_BaseConfig: must be an architecture"):
        _BaseConfig(SAEConfig())
