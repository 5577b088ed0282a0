"""Profiles as tables, without vLLM: each row of a batch is routed as `apply_mote` would, and untouched rows stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_families import TINY_FAMILIES

from hf_mote import MoTEConfig, find_routers
from hf_mote.errors import ConfigError, DataError, RouterContractError, UnknownNameError, UnsupportedError
from hf_mote.mote.patch import edit_of
from hf_mote.serving.profiles import LayerRouting, ProfileTables, Span
from hf_mote.serving.recorded import check_raw, numbers_of
from hf_mote.serving.requests import Front, check_admitted, salted
from hf_mote.serving.settings import Profile, ServingSettings

TOKENS = 12
CONFIGS = {
    "drop": {"suppress": [[2, 1], [2, 4]]},
    "half": {"suppress": [[2, 1], [2, 4]], "strength": 0.5},
    "zero": {"suppress": [[2, 1], [2, 4]], "suppress_mode": "zero"},
    "reroute": {"suppress": [[2, 1], [2, 4]], "suppress_mode": "reroute"},
    "own": {"stimulate": [[2, 3]]},
    "max": {"stimulate": [[2, 3]], "stimulate_weight": "max"},
    "number": {"stimulate": [[2, 3]], "stimulate_weight": 0.7, "strength": 0.5},
    "logits": {"bias": [[2, 2, 1.5]]},
    "selection": {"bias": [[2, 2, 1.5]], "bias_on": "selection"},
    "gain": {"gain": [[2, 1, 2.5], [2, 4, 0.5]]},
    "gain_half": {"gain": [[2, 1, 2.5], [2, 4, 0.0]], "stimulate": [[2, 3]], "strength": 0.5},
    "elsewhere": {"suppress": [[1, 0]]},
}


def tables_for(family: str, *, eager: bool = True, record: int = 0, scale: float = 1.0) -> tuple[ProfileTables, Any]:
    model = TINY_FAMILIES[family]()
    layers = {
        site.layer: LayerRouting(site, site.selection, site.selection_bias(), scale, {})
        for site in find_routers(model)
    }
    settings = ServingSettings.read({"profiles": {name: MoTEConfig(**fields) for name, fields in CONFIGS.items()}})
    tables = ProfileTables(
        layers,
        torch.device("cpu"),
        max_tokens=256,
        max_profiles=len(CONFIGS),
        record=record,
        fields=None if eager else settings.fields,
        touched={1, 2},
    )
    for profile in settings.profiles.values():
        tables.load(profile)
    return tables, settings.profiles


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss", "deepseek_v3", "minimax_m2"])
def test_route_gives_each_row_what_its_profile_does(family: str, eager: bool) -> None:
    tables, profiles = tables_for(family, eager=eager)
    layer = tables.layers[2]
    names = [None, *profiles]
    logits = torch.randn(TOKENS * len(names), layer.site.num_experts, generator=torch.Generator().manual_seed(3))
    native = layer.site.select(logits)
    tables.begin([Span(TOKENS, TOKENS, None if name is None else profiles[name].digest) for name in names])
    weights, indices = tables.route(layer, logits, native.weights.float(), native.indices.int())
    tables.end()
    for place, name in enumerate(names):
        rows = slice(place * TOKENS, (place + 1) * TOKENS)
        if name is None or (eager and name == "elsewhere"):
            assert torch.equal(weights[rows], native.weights[rows].float())
            assert torch.equal(indices[rows], native.indices[rows].int())
            continue
        # In a compiled engine a profile of another layer has the same experts and weights, in whatever order.
        wanted = layer.site.select(logits[rows], edit_of(profiles[name].config, layer.site))
        dense = [
            torch.zeros(TOKENS, layer.site.num_experts).scatter(1, chosen.long(), given.float())
            for chosen, given in ((indices[rows], weights[rows]), (wanted.indices, wanted.weights))
        ]
        torch.testing.assert_close(dense[0], dense[1], atol=2e-7, rtol=1e-6)
        assert torch.equal(indices[rows].long().sort().values, wanted.indices.sort().values)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss", "deepseek_v3", "minimax_m2"])
def test_route_profiles_together_are_each_by_itself_bit_for_bit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small passes apply profiles together, large ones by the fields that they change; no row can tell."""
    tables, profiles = tables_for(family)
    layer = tables.layers[2]
    names = [None, *profiles, "number", "drop"]
    spans = [Span(1 + place % 2, 1, name and profiles[name].digest) for place, name in enumerate(names)]
    total = sum(span.length for span in spans)
    generator = torch.Generator().manual_seed(4)
    for step in range(4):
        logits = torch.randn(total, layer.site.num_experts, generator=generator)
        logits = logits.round(decimals=step % 2)  # with ties, too
        native = layer.site.select(logits)
        given = (layer, logits, native.weights.float(), native.indices.int())
        results = []
        for most in (2**14, 0):
            monkeypatch.setattr("hf_mote.serving.profiles._FEW", most)
            tables._last_groups = ([], {})
            tables.begin(spans)
            results.append(tables.route(*given))
            tables.end()
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        spans.insert(0, spans.pop())


def test_route_a_profile_that_takes_the_place_of_another_is_seen_by_the_next_pass() -> None:
    tables, profiles = tables_for("mixtral")
    layer = tables.layers[2]
    logits = torch.randn(2, layer.site.num_experts)
    native = layer.site.select(logits)
    kept = profiles["number"].digest

    def weights_under(digest: str) -> torch.Tensor:
        tables.begin([Span(1, 0, digest), Span(1, 0, kept)])
        weights, _ = tables.route(layer, logits, native.weights, native.indices)
        tables.end()
        return weights[0]

    assert torch.equal(weights_under(profiles["own"].digest), weights_under(profiles["own"].digest))
    tables.unload(profiles["own"].digest)
    chosen = native.indices[0].tolist()
    gone = Profile("gone", MoTEConfig(suppress=[[2, expert] for expert in chosen], suppress_mode="zero"))
    tables.load(gone)
    assert weights_under(gone.digest).tolist() == [0.0] * len(chosen)


def test_route_one_profile_for_all_rows_needs_no_tables() -> None:
    tables, profiles = tables_for("mixtral")
    layer = tables.layers[2]
    logits = torch.randn(TOKENS, layer.site.num_experts)
    native = layer.site.select(logits)
    tables.begin([Span(TOKENS, TOKENS, profiles["reroute"].digest)])
    weights, indices = tables.route(layer, logits, native.weights, native.indices)
    wanted = layer.site.select(logits, edit_of(profiles["reroute"].config, layer.site))
    assert torch.equal(weights, wanted.weights)
    assert torch.equal(indices, wanted.indices)
    with pytest.raises(RouterContractError, match="some of the rows of a pass"):
        tables.route(layer, logits[:3], native.weights[:3], native.indices[:3])
    tables.end()
    assert tables.route(layer, logits, native.weights, native.indices)[0] is native.weights


@pytest.mark.parametrize(("scope", "edited"), [("prompt", range(5)), ("generation", range(5, 8)), ("all", range(8))])
def test_route_scopes_are_counted_from_the_prompts_end(scope: Any, edited: range) -> None:
    tables, _ = tables_for("mixtral")
    tables.unload(tables.digests[0])
    profile = Profile("scoped", MoTEConfig(suppress=[[2, e] for e in range(6)], suppress_mode="zero", scope=scope))
    tables.load(profile)
    layer = tables.layers[2]
    logits = torch.randn(8, layer.site.num_experts)
    native = layer.site.select(logits)
    tables.begin([Span(8, 5, profile.digest)])
    weights, _ = tables.route(layer, logits, native.weights, native.indices)
    hit = (native.indices < 6).any(dim=1)
    changed = (weights != native.weights).any(dim=1)
    assert [bool(row) for row in changed] == [row in edited and bool(hit[row]) for row in range(8)]


def test_route_numbers_are_of_the_models_scale() -> None:
    tables, profiles = tables_for("mixtral", scale=2.0)
    layer = tables.layers[2]
    logits = torch.randn(TOKENS, layer.site.num_experts)
    native = layer.site.select(logits)
    tables.begin([Span(TOKENS, TOKENS, profiles["number"].digest)])
    weights, indices = tables.route(layer, logits, native.weights, native.indices)
    assert torch.equal(weights[indices == 3], torch.full((TOKENS,), 0.7 * 0.5 / 2))


def test_tables_of_a_compiled_engine_are_fixed_and_hold_only_the_fields_used() -> None:
    model = TINY_FAMILIES["mixtral"]()
    layers = {site.layer: LayerRouting(site, site.selection, None, 1.0, {}) for site in find_routers(model)}
    settings = ServingSettings.read({"profiles": {"drop": MoTEConfig(suppress=[[2, 1]])}})
    tables = ProfileTables(
        layers, torch.device("cpu"), max_tokens=8, max_profiles=3, fields=settings.fields, touched={2}
    )
    tables.load(settings.profiles["drop"])
    assert {number: set(layer.tables) for number, layer in layers.items()} == {0: set(), 1: set(), 2: {"drop_share"}}
    tables.load(Profile("half", MoTEConfig(suppress=[[2, 3]], strength=0.5)))
    for fields in ({"suppress": [[1, 1]]}, {"suppress": [[2, 1]], "suppress_mode": "zero"}):
        with pytest.raises(UnsupportedError, match="compiled without"):
            tables.load(Profile("other", MoTEConfig(**fields)))
    assert len(tables.digests) == 2


def test_tables_rows_are_reused_and_forget_what_they_held() -> None:
    tables, profiles = tables_for("mixtral")
    before = tables.digests
    with pytest.raises(UnsupportedError, match="as many profiles as it may"):
        tables.load(Profile("more", MoTEConfig(suppress=[[2, 7]])))
    tables.unload(profiles["reroute"].digest)
    tables.load(Profile("more", MoTEConfig(suppress=[[2, 7]], suppress_mode="zero")))
    assert len(tables.digests) == len(before)
    row = next(row for row in range(len(CONFIGS) + 1) if tables.layers[2].tables["gain"][row, 7] == 0)
    assert not tables.layers[2].tables["banned"][row].any()


def test_recordings_are_counted_by_slot_and_phase_and_once() -> None:
    tables, profiles = tables_for("mixtral", record=2)
    layer = tables.layers[2]
    logits = torch.randn(9, layer.site.num_experts)
    native = layer.site.select(logits)
    spans = [Span(4, 3, label=0), Span(3, 3, profiles["zero"].digest, label=1, seen=1), Span(2, 0)]
    tables.begin(spans)
    weights, indices = tables.route(layer, logits, native.weights, native.indices)
    tables.end()
    first = tables.take(0)
    assert first["tokens"] == [3, 1]
    counts = torch.tensor(first["layers"]["2"][0])
    assert torch.equal(counts[0].long(), torch.bincount(indices[:3].reshape(-1), minlength=8))
    assert torch.equal(counts[1].long(), torch.bincount(indices[3].reshape(-1), minlength=8))
    second = tables.take(1)
    assert second["tokens"] == [2, 0]
    seen = indices[5:7][weights[5:7] != 0]  # what the profile left without weight was not visited
    assert torch.equal(torch.tensor(second["layers"]["2"][0][0]).long(), torch.bincount(seen, minlength=8))
    assert tables.take(0)["tokens"] == [0, 0]
    assert not torch.tensor(tables.take(0)["layers"]["2"]).any()


def test_front_names_become_digests_and_salts() -> None:
    settings = ServingSettings.read({"profiles": {"ban": {"schema_version": 1, "suppress": [[2, 1]]}}, "record": 1})
    front = Front(settings)
    assert front.admit(None) is None
    assert front.admit({"something": 1}) is None
    admitted = front.admit({"mote": "ban", "other": 2})
    assert admitted is not None
    assert admitted["mote_digest"] == settings.profiles["ban"].digest
    salt = salted("mine", admitted)
    assert salt == f"hf_mote:{admitted['mote_digest']}:mine"
    check_admitted(admitted, salt, {admitted["mote_digest"]})
    for extra, given in ((admitted, "mine"), ({"mote": "ban"}, salt), ({**admitted, "mote_digest": "0"}, salt)):
        with pytest.raises((UnknownNameError, UnsupportedError)):
            check_admitted(extra, given, {admitted["mote_digest"]})
    one, other = (front.admit({"mote_record": "a"}) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one["mote_slot"] == other["mote_slot"] == 0
    assert salted(None, one) != salted(None, other), "a recorded request reads nothing from the cache"
    for extra, error in (
        ({"mote": "bann"}, UnknownNameError),
        ({"mote": 1}, UnknownNameError),
        ({"mote_digest": "0"}, DataError),
        ({"mote_record": "b"}, UnsupportedError),
        ({"mote_record": ""}, DataError),
    ):
        with pytest.raises(error):
            front.admit(extra)
    with pytest.raises(UnsupportedError, match="serves no profiles"):
        Front(None).admit({"mote": "ban"})


def test_front_a_name_that_is_loaded_anew_means_the_new_profile() -> None:
    front = Front(ServingSettings.read({"profiles": {"ban": MoTEConfig(suppress=[[2, 1]])}}))
    before = front.profiles["ban"]
    front.loaded(front.check_load("ban", MoTEConfig(suppress=[[2, 2]])))
    assert front.stale == {before.digest}
    front.loaded(front.check_load("again", MoTEConfig(suppress=[[2, 1]])))
    assert front.stale == set()
    front.forget("again")
    assert front.stale == {before.digest}
    with pytest.raises(UnknownNameError):
        front.forget("again")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (3, ConfigError),
        ({"profile": {}}, UnknownNameError),
        ({"profiles": []}, ConfigError),
        ({"profiles": {"a b": MoTEConfig()}}, ConfigError),
        ({"profiles": {"a": MoTEConfig(scope="thinking", thinking_tokens=[1, 2])}}, UnsupportedError),
        ({"profiles": {"a": MoTEConfig(suppress=[[1, 1]], positions=[-1])}}, UnsupportedError),
        ({"profiles": {"a": "/nowhere/at/all"}}, UnknownNameError),
        ({"max_profiles": 0}, ConfigError),
        ({"max_profiles": True}, ConfigError),
        ({"allow_other_weights": 1}, ConfigError),
        ({"record": -1}, ConfigError),
        ({"modes": ["dropp"]}, UnknownNameError),
        (
            {"profiles": {"a": MoTEConfig(suppress=[[1, 1]]), "b": MoTEConfig(suppress=[[1, 2]])}, "max_profiles": 1},
            ConfigError,
        ),
    ],
)
def test_settings_that_are_malformed_are_refused(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ServingSettings.read(given)


def test_settings_survive_being_inlined() -> None:
    settings = ServingSettings.read(
        {"profiles": {name: MoTEConfig(**fields) for name, fields in CONFIGS.items()}, "record": 3, "modes": ["drop"]}
    )
    again = ServingSettings.read(settings.to_dict())
    assert again == settings
    assert {one.digest for one in again.profiles.values()} == {one.digest for one in settings.profiles.values()}


def test_log_probabilities_of_an_engine_are_the_models_own_and_numbers() -> None:
    check_raw("engine", "raw_logprobs")
    with pytest.raises(UnsupportedError, match="processed_logprobs.*raw_logprobs"):
        check_raw("engine", "processed_logprobs")
    # What vLLM says where JSON has no minus infinity.
    assert numbers_of([-0.5, -9999.0, 0]) == [-0.5, -math.inf, 0.0]
    assert numbers_of([2e-7]) == [0.0]  # a logarithm of float32, rounded
    with pytest.raises(DataError, match="log probabilities must be at most 0 .got 0.5"):
        numbers_of([-0.5, 0.5])
    for wrong in (None, math.nan, True):
        with pytest.raises(DataError, match="lacks the log probability"):
            numbers_of([-0.5, wrong])
