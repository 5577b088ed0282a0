"""`link_latents`: by weights and by intervention, where the answer is known, and the table that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae.test_intervene import num_hooks
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from hf_mote import LatentExpertMap, ReLUSAEConfig, ReLUSAEModel, find_routers, link_latents, record_routing, steer
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError, UnsupportedError

TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] for i in range(12)]
LAYER = 1
QUICK: dict[str, Any] = {"method": "intervention", "progress": False, "sequences_per_forward": 5}
GIVEN: dict[str, Any] = {"method": "intervention", "dataset": TEXTS, "tokenizer": tiny_tokenizer()}


def router(model: Any) -> Any:
    return next(site for site in find_routers(model) if site.layer == LAYER)


def sae_at(place: str, rows: Tensor | None = None) -> ReLUSAEModel:
    """An SAE of 24 latents, of which each is active on some tokens."""
    torch.manual_seed(3)
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=32, num_latents=24, hookpoint=place))
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.b_enc.fill_(-4.0)
        if rows is not None:
            sae.W_dec.copy_(rows)
    return sae.eval()


def unit_rows() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(24, 32, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "deepseek_v2"])
def test_weights_are_dictionary_rows_times_the_router_s(family: str) -> None:
    model = tiny_model(family)
    site = router(model)
    sae = sae_at(f"{site.path}.input")
    links = link_latents(model, sae)
    logits = (sae.W_dec @ site.module.weight.T).detach().double()
    expected = logits - logits.mean(1, keepdim=True)
    assert (links.layers, links.latents, links.method) == ((LAYER,), tuple(range(24)), "weights")
    torch.testing.assert_close(links.values[:, 0], expected, atol=1e-5, rtol=1e-5)
    strongest = links.top(1)[0]
    assert abs(strongest.value) == pytest.approx(float(expected.abs().max()), rel=1e-4)
    some = link_latents(model, sae, latents=[7, 2])
    torch.testing.assert_close(some.values, links.values[[7, 2]], atol=1e-6, rtol=1e-6)
    assert num_hooks(model) == 0


def test_planted_latent_is_first_for_its_expert() -> None:
    model = tiny_model("mixtral")
    site, rows = router(model), unit_rows()
    with torch.no_grad():
        site.module.weight.mul_(0.1)
        site.module.weight[5] += 4 * rows[9]
    links = link_latents(model, sae_at(f"{site.path}.input", rows))
    assert links.top(1)[0][:3] == (9, LAYER, 5)
    assert [link.latent for link in links.for_expert(LAYER, 5, 1)] == [9]
    assert links.for_latent(9, 1)[0].expert == 5
    assert links.at(9, LAYER, 5) == links.top(1)[0].value > 3


def test_place_that_holds_the_router_s_input_is_as_good_and_others_are_refused() -> None:
    model = tiny_model("mixtral")
    own = link_latents(model, sae_at(f"{router(model).path}.input"))
    other = link_latents(model, sae_at(f"model.layers.{LAYER}.post_attention_layernorm.output"))
    assert torch.equal(own.values, other.values)
    with pytest.raises(UnsupportedError, match="not the input of a router"):
        link_latents(model, sae_at(f"model.layers.{LAYER}.output"))


@torch.no_grad()
def counts_of(model: Any, ids: Tensor) -> Tensor:
    with record_routing(model, phase="prompt") as record:
        model(ids)
    return record.total().counts


@pytest.mark.parametrize("edit", ["ablate", ("multiply", 3.0), 6.0, ("clamp", 2.0)])
def test_intervention_counts_what_steering_changes(edit: Any) -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    sae = sae_at("model.layers.0.output")
    links = link_latents(model, sae, TEXTS, tokenizer, latents=[4, 11], edit=edit, **QUICK)
    change, tokens = torch.zeros(3, 8, dtype=torch.float64), 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            active = sae.encode(model(ids, output_hidden_states=True).hidden_states[1][0])[:, 4] > 0
        tokens += int(active.sum()) if edit in ("ablate", ("multiply", 3.0)) else ids.shape[1]
        before = counts_of(model, ids)
        with steer(model, sae, {4: edit}):
            change += counts_of(model, ids) - before
    assert tokens > 0
    assert links.tokens[0] == tokens
    torch.testing.assert_close(links.values[0], change / tokens)
    assert float(links.values[:, 0].abs().max()) == 0  # the router before the SAE sees nothing of it
    assert float(links.values[0].abs().max()) > 0
    # A token has as many experts as before.
    torch.testing.assert_close(links.values.sum(-1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert num_hooks(model) == 0


def test_planted_latent_that_is_added_brings_its_expert() -> None:
    model = tiny_model("mixtral")
    site, rows = router(model), unit_rows()
    with torch.no_grad():
        site.module.weight[5] = 4 * rows[9]
    links = link_latents(
        model, sae_at(f"{site.path}.input", rows), TEXTS, tiny_tokenizer(), latents=[3, 9], edit=50.0, **QUICK
    )
    assert links.for_latent(9, 1)[0][:3] == (9, LAYER, 5)
    ids = [torch.tensor([tiny_tokenizer()(text)["input_ids"]]) for text in TEXTS]
    before = sum(float(counts_of(model, one)[LAYER, 5]) for one in ids) / sum(one.shape[1] for one in ids)
    assert links.at(9, LAYER, 5) == pytest.approx(1 - before)


def test_latents_that_are_active_most_are_taken_by_default() -> None:
    model, sae = tiny_model("mixtral"), sae_at("model.layers.0.output")
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    links = link_latents(model, sae, TEXTS, tiny_tokenizer(), max_tokens=60, **QUICK)
    assert 5 not in links.latents
    assert len(links.latents) > 10
    assert int(links.tokens.min()) > 0


def test_map_is_saved_and_read_strictly(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    links = link_latents(model, sae_at(f"{router(model).path}.input"))
    links.save_pretrained(tmp_path)
    read = LatentExpertMap.from_pretrained(tmp_path)
    assert torch.equal(read.values, links.values)
    assert (read.latents, read.layers, read.method) == (links.latents, links.layers, links.method)
    assert read.provenance == links.provenance
    (tmp_path / LatentExpertMap.file_name).write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        LatentExpertMap.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": torch.zeros(2, 1, 4)}, "wrong type"),
        ({"values": torch.zeros(2, 2, 4, dtype=torch.float64)}, "wrong shape"),
        ({"values": torch.full((2, 1, 4), torch.nan, dtype=torch.float64)}, "not finite"),
        ({"latents": (1, 1)}, "must be latents"),
        ({"latents": (1,)}, "wrong shape"),
        ({"layers": (3, 1)}, "must be layers"),
        ({"tokens": torch.tensor([-1, 0])}, "below 0"),
    ],
)
def test_map_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "values": torch.zeros(2, 1, 4, dtype=torch.float64),
        "latents": (0, 1),
        "layers": (1,),
        "method": "weights",
        "tokens": torch.zeros(2, dtype=torch.int64),
    }
    made = LatentExpertMap(**good)
    assert made.top(3) == []
    with pytest.raises(UnknownNameError):
        made.for_latent(7)
    with pytest.raises(UnknownNameError):
        made.for_expert(2, 0)
    with pytest.raises(DataError, match=message):
        LatentExpertMap(**{**good, **fields})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "guess"}, UnknownNameError, "method"),
        ({"latents": [24]}, ConfigError, "no such latent"),
        ({"latents": []}, ConfigError, "must be latents"),
        ({"dataset": TEXTS}, ConfigError, "the method needs no text"),
        ({"method": "intervention"}, ConfigError, "needs a text"),
        ({"method": "intervention", "dataset": TEXTS}, DataError, "there is no tokenizer"),
        ({**GIVEN, "dataset": []}, DataError, "holds no tokens"),
        ({**GIVEN, "edit": "erase", "latents": [1]}, ConfigError, "must be an edit"),
        ({"max_tokens": 0}, ConfigError, "max_tokens"),
    ],
)
def test_what_cannot_be_linked_is_refused(settings: dict[str, Any], error: Any, message: str) -> None:
    model = tiny_model("mixtral")
    with pytest.raises(error, match=message):
        link_latents(model, sae_at(f"{router(model).path}.input"), **settings)
    assert num_hooks(model) == 0
