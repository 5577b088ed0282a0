"""`link_latents`: by weights, intervention and prediction, where the answer is known, and the table that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import planted_links as planted
import pytest
import torch
from sae.test_intervene import num_hooks
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from hf_mote import LatentExpertMap, ReLUSAEConfig, ReLUSAEModel, find_routers, link_latents, record_routing, steer
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError, UnsupportedError
from hf_mote.hub import write_tensors
from hf_mote.links import prediction

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


@torch.no_grad()
def test_prediction_is_the_correlation_of_activation_and_choice_over_all_tokens() -> None:
    model, tokenizer, sae = tiny_model("mixtral"), tiny_tokenizer(), sae_at("model.layers.0.output")
    texts = [text[: 8 + 3 * i] for i, text in enumerate(TEXTS)]  # of several lengths, so that there is padding
    links = link_latents(model, sae, texts, tokenizer, **{**QUICK, "method": "prediction"})
    activations, choices = [], []
    for text in texts:
        out = model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True, output_router_logits=True)
        activations.append(sae.encode(out.hidden_states[1][0]))
        chosen = torch.stack([logits.topk(2).indices for logits in out.router_logits], 1)
        choices.append(torch.zeros(len(chosen), 3, 8).scatter_(2, chosen, 1.0))
    a, c = torch.cat(activations).double(), torch.cat(choices).double()
    assert (links.layers, links.method, links.num_tokens) == ((0, 1, 2), "prediction", len(a))
    expected = np.corrcoef(a.numpy().T, c.flatten(1).numpy().T)[:24, 24:]
    # In a batch activations are rounded otherwise.
    np.testing.assert_allclose(links.values.flatten(1).numpy(), expected, atol=1e-6)
    assert torch.equal(links.tokens, (a > 0).sum(0))
    found = links.prediction(11, 2, 3)
    active, here = a[:, 11] > 0, c[:, 2, 3] > 0
    assert 0 < int((active & here).sum()) < int(active.sum())
    assert found.correlation == links.at(11, 2, 3)
    assert found.precision == pytest.approx(float(here[active].double().mean()))
    assert found.recall == pytest.approx(float(active[here].double().mean()))
    assert found.base_rate == pytest.approx(float(here.double().mean()))
    assert found.lift == pytest.approx(found.precision / found.base_rate)
    some = link_latents(model, sae, texts, tokenizer, latents=[7, 2], **{**QUICK, "method": "prediction"})
    assert torch.equal(some.values, links.values[[7, 2]])
    assert torch.equal(some.together, links.together[[7, 2]])
    assert num_hooks(model) == 0


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2_groups"])
def test_prediction_counts_what_the_record_counts(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    links = link_latents(model, sae_at("model.layers.0.output"), TEXTS, tokenizer, **{**QUICK, "method": "prediction"})
    counts = sum(counts_of(model, torch.tensor([tokenizer(text)["input_ids"]])) for text in TEXTS)
    assert torch.equal(links.chosen.double(), counts)


def test_prediction_is_0_where_a_latent_or_an_expert_is_always_or_never_there() -> None:
    model, sae = planted.planted_links()
    with torch.no_grad():
        sae.W_enc[1], sae.b_enc[1] = 0.0, 0.3  # active alike on all tokens, by an amount that rounds
        sae.W_enc[2], sae.b_enc[2] = 0.0, -1.0
        model.model.layers[1].mlp.gate.weight.zero_()  # which chooses the same two for all
    links = link_latents(model, sae, planted.TEXTS, tiny_tokenizer(), **{**QUICK, "method": "prediction"})
    assert links.tokens[1:3].tolist() == [links.num_tokens, 0]
    assert float(links.values[1:3].abs().max()) == 0
    always = links.chosen[1] == links.num_tokens
    assert int(always.sum()) == 2
    assert float(links.values[:, 1].abs().max()) == 0
    expert = int(always.nonzero()[0])
    assert links.prediction(planted.DRIVER, 1, expert)[1:] == (
        1.0,
        int(links.tokens[planted.DRIVER]) / links.num_tokens,
        1.0,
        1.0,
    )
    assert links.prediction(2, 0, planted.EXPERT).precision is None
    assert links.prediction(2, 0, planted.EXPERT).lift is None


def test_planted_driver_is_first_by_every_method_and_what_goes_along_by_prediction_alone() -> None:
    model, sae = planted.planted_links()
    read: dict[str, Any] = {"dataset": planted.TEXTS, "tokenizer": tiny_tokenizer(), "progress": False}
    weights = link_latents(model, sae)
    predicted = link_latents(model, sae, method="prediction", **read)
    changed = link_latents(model, sae, method="intervention", latents=range(24), **read)
    place = (0, planted.EXPERT)
    for links in (weights, predicted, changed):
        assert links.for_latent(planted.DRIVER, 1)[0][1:3] == place
    # The driver predicts; the copy predicts better, and is nothing to the router.
    assert [link.latent for link in predicted.for_expert(*place, 2)] == [planted.COPY, planted.DRIVER]
    assert predicted.for_latent(planted.COPY, 1)[0][1:3] == place
    for links in (weights, changed):
        assert links.for_expert(*place, 1)[0].latent == planted.DRIVER
        assert links.for_latent(planted.COPY) == []
    assert weights.at(planted.DRIVER, *place) == pytest.approx(4 - 4 / 8)
    assert changed.at(planted.DRIVER, *place) == -1.0  # no token is left that chooses the expert
    told = predicted.prediction(planted.COPY, *place)
    assert (told.precision, told.recall) == (1.0, 1.0)
    assert told.lift == pytest.approx(1 / told.base_rate)


def test_prediction_of_more_links_than_there_is_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = planted.planted_links()
    monkeypatch.setattr(prediction, "MOST_LINKS", 20 * 24)
    read: dict[str, Any] = {"dataset": planted.TEXTS, "tokenizer": tiny_tokenizer(), **QUICK, "method": "prediction"}
    with pytest.raises(ConfigError, match=r"must be fewer .*24 latents and 24 experts, expected at most 20 latents"):
        link_latents(model, sae, **read)
    assert len(link_latents(model, sae, latents=range(20), **read).latents) == 20


def test_prediction_goes_on_from_its_run_folder_also_for_other_latents(tmp_path: Path) -> None:
    model, sae = planted.planted_links()
    read: dict[str, Any] = {"dataset": planted.TEXTS, "tokenizer": tiny_tokenizer(), **QUICK, "method": "prediction"}
    whole = link_latents(model, sae, **read)
    link_latents(model, sae, run_folder=tmp_path, **read)
    records = sorted(tmp_path.glob("seen-*.safetensors"))
    assert len(records) == 3
    records[1].unlink()
    again = link_latents(model, sae, run_folder=tmp_path, **read)
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.together, whole.together)
    stamps = [record.stat().st_mtime_ns for record in records]
    some = link_latents(model, sae, latents=[9, 4], run_folder=tmp_path, **read)
    assert torch.equal(some.values, whole.values[[9, 4]])
    assert [record.stat().st_mtime_ns for record in records] == stamps


@pytest.mark.parametrize("method", ["weights", "prediction"])
def test_map_is_saved_and_read_strictly(method: str, tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    read: dict[str, Any] = {} if method == "weights" else {"dataset": TEXTS, "tokenizer": tiny_tokenizer()}
    links = link_latents(model, sae_at(f"{router(model).path}.input"), method=method, progress=False, **read)
    links.save_pretrained(tmp_path)
    found = LatentExpertMap.from_pretrained(tmp_path)
    for name in ("values", "tokens", "together", "chosen"):
        one, other = getattr(found, name), getattr(links, name)
        assert (one is None and other is None) or torch.equal(one, other)
    for name in ("latents", "layers", "method", "provenance", "fingerprint", "num_tokens"):
        assert getattr(found, name) == getattr(links, name)
    assert found.fingerprint["num_experts"] == [8, 8, 8]
    assert found.top(3) == links.top(3)
    (tmp_path / LatentExpertMap.file_name).write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        LatentExpertMap.from_pretrained(tmp_path)


def test_file_of_the_earlier_form_is_read(tmp_path: Path) -> None:
    tensors = {
        "values": torch.tensor([[[0.0, 2.0]]], dtype=torch.float64),
        "tokens": torch.tensor([0]),
        "latents": torch.tensor([7]),
        "layers": torch.tensor([2]),
    }
    told = {"kind": "latent_expert_map", "method": "weights", "provenance": {"model": "m"}}
    write_tensors(tmp_path / LatentExpertMap.file_name, tensors, told)
    links = LatentExpertMap.from_pretrained(tmp_path)
    assert links.top(5) == [(7, 2, 1, 2.0)]
    assert links.fingerprint is links.together is links.num_tokens is None
    with pytest.raises(ConfigError, match="method='prediction'"):
        links.prediction(7, 2, 1)


def test_strongest_links_are_those_of_all_sorted() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 4, (30, 4, 5), generator=draw).double()
    none = torch.zeros(30, dtype=torch.int64)
    links = LatentExpertMap(values, tuple(range(100, 130)), (1, 2, 5, 7), "weights", none)
    every = [
        (100 + latent, (1, 2, 5, 7)[row], expert, float(values[latent, row, expert]))
        for latent, row, expert in values.nonzero().tolist()
    ]
    expected = sorted(every, key=lambda link: -abs(link[3]))  # ties in their order
    for n in (0, 1, 17, len(every), 600):
        assert links.top(n) == expected[:n]
    assert links.for_expert(5, 3, 4) == [link for link in expected if link[1:3] == (5, 3)][:4]
    assert links.for_latent(111, 50) == [link for link in expected if link[0] == 111]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"together": torch.tensor([[[1, 0]], [[2, 5]]])}, "must be tokens of both"),
        ({"together": torch.tensor([[[1, 0]], [[1, 2]]])}, "must be as many as the tokens of both require"),
        ({"together": torch.zeros(2, 1, 3, dtype=torch.int64)}, "wrong shape"),
        ({"together": None}, "wrong type"),
        ({"chosen": torch.tensor([[11, 0]])}, "must be of the tokens read"),
        ({"tokens": torch.tensor([3, 11])}, "must be of the tokens read"),
        ({"values": torch.full((2, 1, 2), 1.5, dtype=torch.float64)}, "must be correlations"),
        ({"num_tokens": None}, "must be how many tokens"),
        ({"num_tokens": 10**30}, "must be how many tokens"),
        ({"method": "weights"}, "belongs to a map by prediction"),
    ],
)
def test_prediction_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "values": torch.zeros(2, 1, 2, dtype=torch.float64),
        "latents": (0, 1),
        "layers": (1,),
        "method": "prediction",
        "tokens": torch.tensor([3, 8]),
        "together": torch.tensor([[[1, 0]], [[2, 2]]]),
        "chosen": torch.tensor([[4, 2]]),
        "num_tokens": 10,
    }
    assert LatentExpertMap(**good).prediction(1, 1, 1) == (0.0, 0.25, 1.0, 0.2, 1.25)
    with pytest.raises(DataError, match=message):
        LatentExpertMap(**{**good, **fields})


FINGERPRINT = {"model_type": "mixtral", "layers": [1], "num_experts": [4], "top_k": [2], "router_sha256": None}


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
        ({"tokens": torch.tensor([3, 0])}, "must be 0 by weights"),
        ({"method": "intervention", "values": torch.ones(2, 1, 4).double()}, "latent .*on no token .*got latent 0"),
        ({"fingerprint": {**FINGERPRINT, "layers": [2]}}, "not those of the fingerprint"),
        ({"fingerprint": {**FINGERPRINT, "num_experts": [3]}}, "experts that the fingerprint does not have"),
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
        ({"method": "prediction"}, ConfigError, "a prediction needs a text"),
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
