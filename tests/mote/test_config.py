"""`MoTEConfig`: round trips of anything valid, refusal by name of anything else, and meeting a model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import TINY_MODELS, tiny_model

from hf_mote import MoTEConfig, find_routers
from hf_mote.errors import (
    ConfigError,
    FileFormatError,
    HFMoTEError,
    ModelMismatchError,
    UnknownNameError,
    UnsupportedError,
)
from hf_mote.sharing.cards import CardNotes

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

indices = st.integers(0, 2**40)
# Times the largest strength still a float32.
finite = st.floats(-(2.0**120), 2.0**120, width=32)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def fingerprints(draw: Any) -> dict[str, Any]:
    routers = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 300), min_size=routers, max_size=routers))
    return {
        "model_type": draw(text),
        "layers": sorted(draw(st.lists(st.integers(0, 99), min_size=routers, max_size=routers, unique=True))),
        "num_experts": sizes,
        "top_k": [draw(st.integers(1, size)) for size in sizes],
        "router_sha256": draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)),
        **draw(st.just({}) | st.fixed_dictionaries({"sampled_weights": text | st.dictionaries(text, text)})),
    }


positions = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5, unique=True)
scopes = st.one_of(
    st.fixed_dictionaries({"scope": st.sampled_from(["all", "prompt", "generation"])}),
    st.fixed_dictionaries({"scope": st.sampled_from(["all", "prompt"]), "positions": positions}),
)


@st.composite
def valid_fields(draw: Any) -> dict[str, Any]:
    targets = draw(st.lists(st.tuples(indices, indices), max_size=6, unique=True))
    cut = draw(st.integers(0, len(targets)))
    mode = draw(st.sampled_from(["drop", "reroute", "zero"]))
    whole = bool(targets[:cut])
    gained = draw(
        st.lists(indices, max_size=3, unique=True).map(lambda found: [(2**40 + 1, expert) for expert in found])
    )
    most = 1 if gained or whole else 50
    strength = st.sampled_from([0, 1, 0.0, 1.0]) if whole and mode == "reroute" else st.floats(0, most)
    return {
        "suppress": targets[:cut],
        "stimulate": [list(target) for target in targets[cut:]],
        "bias": draw(
            st.lists(st.tuples(indices, indices, finite | st.integers(-9, 9)), max_size=4, unique_by=lambda t: t[:2])
        ),
        "suppress_mode": mode,
        "stimulate_weight": draw(st.sampled_from(["own", "max"]) | st.floats(0, 100) | st.integers(0, 9)),
        "bias_on": draw(st.sampled_from(["logits", "selection"])),
        "strength": draw(strength),
        "fingerprint": draw(st.none() | fingerprints()),
        "base_model": draw(st.none() | text),
        "provenance": draw(st.dictionaries(text, json_values, max_size=3)),
        **draw(scopes),
        "gain": [(*pair, draw(st.floats(0, 2.0**120, width=32) | st.integers(0, 9))) for pair in gained],
    }


FULL: dict[str, Any] = MoTEConfig(
    suppress=[[1, 2], [2, 3]],
    stimulate=[[1, 4]],
    bias=[[2, 1, 0.5]],
    gain=[[2, 1, 2.5], [2, 7, 0.0]],
    positions=[-1, 0],
    fingerprint={
        "model_type": "mixtral",
        "layers": [1, 2],
        "num_experts": [8, 8],
        "top_k": [2, 2],
        "router_sha256": "0" * 64,
    },
    base_model="org/name",
    provenance={"prompts": 12, "measured": {"before": 0.9}},
).to_dict()


@given(valid_fields())
@quick
def test_mote_config_any_valid_one_survives_to_dict_and_json(fields: dict[str, Any]) -> None:
    given_fields = copy.deepcopy(fields)
    config = MoTEConfig(**fields)
    assert fields == given_fields
    data = config.to_dict()
    assert MoTEConfig.from_dict(data) == config
    assert MoTEConfig.from_dict(json.loads(json.dumps(data, allow_nan=False))) == config
    assert MoTEConfig.from_dict(data).to_dict() == data
    assert config.suppress == sorted(config.suppress)
    assert all(type(pair) is list for pair in [*config.suppress, *config.stimulate, *config.bias, *config.gain])


@given(valid_fields())
@quick
def test_mote_config_any_valid_one_survives_save_and_load(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = MoTEConfig(**fields)
    config.save_pretrained(tmp_path)
    assert MoTEConfig.from_pretrained(tmp_path) == config
    assert MoTEConfig.from_pretrained(str(tmp_path / "mote_config.json")) == config


def test_mote_config_to_dict_is_a_copy() -> None:
    config = MoTEConfig(suppress=[[1, 2]], provenance={"a": [1]})
    data = config.to_dict()
    data["suppress"][0][0] = 9
    data["provenance"]["a"].append(2)
    assert config == MoTEConfig(suppress=[[1, 2]], provenance={"a": [1]})


def test_mote_config_provenance_given_is_copied() -> None:
    provenance = {"a": [1]}
    config = MoTEConfig(provenance=provenance)
    provenance["a"].append(2)
    assert config.provenance == {"a": [1]}


NOT_PAIRS = [
    None,
    5,
    "[1, 2]",
    {"1": 2},
    [1, 2],
    [[1]],
    [[1, 2, 3, 4]],
    ["12"],
    [None],
    [{"layer": 1, "expert": 2}],
    [[1, -2]],
    [[-1, 2]],
    [[1, 2.0]],
    [[True, 2]],
    [[1, False]],
    [[1, "2"]],
    [[1, None]],
    [[1, [2]]],
]
CORRUPTIONS: list[tuple[str, Any]] = [
    *[("suppress", value) for value in [*NOT_PAIRS, [[1, 2], [1, 2]], [[1, 2, 3]], [[1, float("nan")]]]],
    *[("stimulate", value) for value in [*NOT_PAIRS, [[1, 5], [1, 5]], [[1, 2, 3]], [[1, 2]]]],  # [1, 2] is suppressed
    *[("bias", value) for value in [*NOT_PAIRS, [[1, 2]], [[1, 2, 0.5], [1, 2, 0.5]], [[1, 2, 1.0], [1, 2, -1.0]]]],
    *[("bias", [[1, 2, v]]) for v in (float("nan"), float("inf"), "1", None, True, [1], 10**400)],
    *[("gain", value) for value in [*NOT_PAIRS, [[1, 7]], [[1, 7, 0.5], [1, 7, 0.5]], [[1, 2, 2.0]], [[1, 4, 2.0]]]],
    *[("gain", [[1, 7, v]]) for v in (float("nan"), float("inf"), "1", None, True, [1], 10**400, -0.5, -1)],
    *[
        ("positions", v)
        for v in ([], "1", 1, {"1": 1}, [1.0], [True], [None], ["1"], [[1]], [1, 1], [2**31], [10**400])
    ],
    *[("suppress_mode", v) for v in ("mask", "Drop", "", None, 1, True, ["drop"])],
    *[("bias_on", v) for v in ("weights", "", None, 0, ["logits"])],
    *[("scope", v) for v in ("everything", "", None, 0, ["all"])],
    *[("stimulate_weight", v) for v in ("most", "1.0", None, True, -0.5, float("nan"), float("inf"), [1], 10**400)],
    *[("strength", v) for v in ("1", None, True, -0.1, 1.5, float("nan"), float("inf"), [1], 10**400)],
    *[("base_model", v) for v in (1, True, ["org/name"], {})],
    *[("provenance", v) for v in (None, [], "text", 1, {"a": float("nan")}, {"a": [float("inf")]})],
    *[("fingerprint", v) for v in ({}, [], "text", 1, True)],
    *[("schema_version", v) for v in (None, 0, 2, 99, -1, "1", True, 1.0)],
    *[("hf_mote_version", v) for v in (1, True, ["0.1"])],
    *[("transformers_version", v) for v in (5, {}, ["5.23"])],
    *[(name, "text") for name in ("supress", "Suppress", "_x", "")],
]


@pytest.mark.parametrize(("field", "value"), CORRUPTIONS, ids=lambda value: str(value)[:40])
def test_mote_config_single_corrupted_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"MoTEConfig\.{field}"):
        MoTEConfig.from_dict({**FULL, field: value})


FINGERPRINT_CORRUPTIONS: list[tuple[str, Any]] = [
    *[("layers", v) for v in (None, 1, "12", [], [1, -2], [1, True], [1, 2.0], [1, None], [1, 1], [2, 1])],
    *[("num_experts", v) for v in (None, 8, [8], [8, -1], [8, True], [8, "8"])],
    *[("top_k", v) for v in (None, 2, [2], [2, -1], [2, True], [2, 2.0], [2, 0], [2, 9])],
    *[("model_type", v) for v in (None, 1, True, ["mixtral"])],
    *[("router_sha256", v) for v in (1, True, ["0"])],
    *[("sampled_weights", v) for v in (None, 1, ["a"], {"a": 1}, {"a": None})],
    ("extra", 1),
]


@pytest.mark.parametrize(("field", "value"), FINGERPRINT_CORRUPTIONS, ids=lambda value: str(value)[:40])
def test_mote_config_corrupted_fingerprint_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="fingerprint") as caught:
        MoTEConfig.from_dict({**FULL, "fingerprint": {**FULL["fingerprint"], field: value}})
    assert field in str(caught.value)


@pytest.mark.parametrize("field", ["layers", "num_experts", "top_k"])
@pytest.mark.parametrize("length", [1, 3])
def test_mote_config_fingerprint_lists_of_unequal_length_are_refused(field: str, length: int) -> None:
    fingerprint = {**FULL["fingerprint"], field: list(range(1, length + 1))}
    with pytest.raises(ConfigError, match=r"fingerprint\.(layers|num_experts|top_k)"):
        MoTEConfig.from_dict({**FULL, "fingerprint": fingerprint})


@pytest.mark.parametrize("field", ["layers", "num_experts", "top_k", "model_type", "router_sha256"])
def test_mote_config_fingerprint_that_lacks_a_field_is_refused(field: str) -> None:
    fingerprint = {key: value for key, value in FULL["fingerprint"].items() if key != field}
    with pytest.raises(ConfigError, match="fingerprint"):
        MoTEConfig.from_dict({**FULL, "fingerprint": fingerprint})


def test_mote_config_without_schema_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="schema_version"):
        MoTEConfig.from_dict({key: value for key, value in FULL.items() if key != "schema_version"})


@pytest.mark.parametrize("data", [None, [], "text", 1, {1: 2, "schema_version": 1}, {**FULL, 1: 2}])
def test_mote_config_from_dict_of_no_dict_with_text_keys_is_refused(data: Any) -> None:
    with pytest.raises(HFMoTEError):
        MoTEConfig.from_dict(data)


def test_mote_config_newer_schema_names_the_version_that_wrote_it() -> None:
    with pytest.raises(ConfigError, match=r"schema_version.*got 7.*9\.9\.9.*upgrade"):
        MoTEConfig.from_dict({**FULL, "schema_version": 7, "hf_mote_version": "9.9.9", "new_field": 1})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"suppress": [[1, 2]], "strength": 1.01}, "strength"),
        ({"suppress": [[1, 2]], "suppress_mode": "reroute", "strength": 0.5}, "strength"),
        ({"suppress": [[1, 2]], "stimulate": [[1, 2]]}, "stimulate"),
        ({"stimulate_weight": -1}, "stimulate_weight"),
        ({"gain": [[1, 2, 0.5]], "strength": 2.5}, "strength"),
        ({"gain": [[1, 2, 1e38]], "strength": 10}, "strength"),
        ({"suppress": [[1, 2]], "gain": [[1, 2, 0.5]]}, "gain"),
        ({"stimulate": [[1, 2]], "gain": [[1, 2, 2.0]]}, "gain"),
    ],
)
def test_mote_config_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"MoTEConfig\.{name}"):
        MoTEConfig(**fields)


def test_mote_config_without_gains_and_positions_is_written_as_before_there_were_any() -> None:
    data = MoTEConfig(suppress=[[1, 2]]).to_dict()
    assert list(data) == [
        *("schema_version", "hf_mote_version", "transformers_version", "suppress", "stimulate", "bias"),
        *("suppress_mode", "stimulate_weight", "bias_on", "scope", "thinking_tokens", "strength", "fingerprint"),
        *("base_model", "provenance"),
    ]
    assert MoTEConfig(gain=[[1, 2, 2]]).to_dict() == {**MoTEConfig().to_dict(), "gain": [[1, 2, 2.0]]}
    assert MoTEConfig(positions=(3, -1)).to_dict() == {**MoTEConfig().to_dict(), "positions": [-1, 3]}


def test_mote_config_gains_stand_on_the_card_and_in_print_and_table() -> None:
    config = MoTEConfig(gain=[[1, 2, 2.5], [0, 3, 0]], bias=[[1, 2, 0.5]])
    assert config.gain == [[0, 3, 0.0], [1, 2, 2.5]]
    assert not config.is_empty
    assert config.targets == [(1, 2), (0, 3), (1, 2)]
    assert "| multiplied (weight times value) | 2 | [0, 3, 0.0], [1, 2, 2.5] |" in config._card(CardNotes(), [])
    assert "multiplied" not in MoTEConfig(bias=[[1, 2, 0.5]])._card(CardNotes(), [])
    assert "0.3 (0.0) 1.2 (2.5) (times the weight)" in repr(config)
    assert "3 experts" in repr(config)
    rows = config.to_pandas().to_dict("records")
    assert [(row["layer"], row["expert"], row["action"], row["value"]) for row in rows] == [
        *((1, 2, "bias", 0.5), (0, 3, "gain", 0.0), (1, 2, "gain", 2.5)),
    ]


def test_mote_config_positions_stand_on_the_card_and_in_print() -> None:
    config = MoTEConfig(suppress=[[1, 2]], positions=[3, -1], scope="prompt")
    assert config.positions == [-1, 3]
    assert "Scope: prompt, at the positions -1, 3. Strength" in config._card(CardNotes(), [])
    assert "prompt, at the positions -1, 3" in repr(config)
    assert "position" not in MoTEConfig(suppress=[[1, 2]])._card(CardNotes(), []) + repr(MoTEConfig(suppress=[[1, 2]]))


def test_mote_config_strength_that_makes_a_gain_negative_is_refused_with_the_limit() -> None:
    assert MoTEConfig(gain=[[1, 2, 0.5]], strength=2.0).strength == 2.0
    with pytest.raises(ConfigError, match=r"makes a gain negative \(got 1 \+ 2\.1 x \(0\.5 - 1\).*at most 2"):
        MoTEConfig(gain=[[1, 2, 0.5]], strength=2.1)


def test_mote_config_stimulating_more_than_once_over_is_allowed() -> None:
    assert MoTEConfig(stimulate=[[1, 2]], strength=3).strength == 3.0
    assert MoTEConfig(suppress=[[1, 2]], suppress_mode="reroute", strength=0).is_empty


def _written(folder: Path, data: Any) -> Path:
    path = folder / "mote_config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_mote_config_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = json.dumps(FULL)
    path = _written(tmp_path, whole[: int(len(whole) * share)])
    with pytest.raises(FileFormatError, match=r"mote_config\.json"):
        MoTEConfig.from_pretrained(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suppress", [[1, True]]),
        ("strength", -1),
        ("supress", []),
        ("schema_version", 2),
        ("fingerprint", {"layers": [1]}),
        ("provenance", []),
    ],
)
def test_mote_config_edited_file_is_refused_with_path_and_field(tmp_path: Path, field: str, value: Any) -> None:
    _written(tmp_path, {**FULL, field: value})
    with pytest.raises(FileFormatError, match=rf"(?s)mote_config\.json.*{field}"):
        MoTEConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_mote_config_file_with_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    _written(tmp_path, json.dumps({**FULL, "strength": 0.123}).replace("0.123", number))
    with pytest.raises(FileFormatError, match="strength"):
        MoTEConfig.from_pretrained(tmp_path)


def test_mote_config_oversized_file_is_refused_and_never_written(tmp_path: Path) -> None:
    """What can be saved can be loaded: a provenance that makes the file too large is refused on the way out."""
    config = MoTEConfig(provenance={"note": "x" * (17 * 2**20)})
    try:
        config.save_pretrained(tmp_path)
    except HFMoTEError:
        return
    assert MoTEConfig.from_pretrained(tmp_path) == config


def test_mote_config_save_writes_sorted_json_and_a_card(tmp_path: Path) -> None:
    config = MoTEConfig.from_dict(FULL)
    config.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "mote_config.json"]
    data = json.loads((tmp_path / "mote_config.json").read_text(encoding="utf-8"))
    assert data == config.to_dict()
    assert list(data) == sorted(data)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    for wanted in ("base_model: org/name", "library_name: hf_mote", "[1, 2], [2, 3]", "[1, 4]", "prompts: 12", "drop"):
        assert wanted in card


def test_mote_config_push_to_hub_uploads_config_and_card(hub: HubServer) -> None:
    config = MoTEConfig.from_dict(FULL)
    assert config.push_to_hub("alice/full", private=True).startswith(f"{hub.url}/alice/full/commit/")
    assert sorted(hub.files("alice/full")) == [".gitattributes", "README.md", "mote_config.json"]
    assert MoTEConfig.from_pretrained("alice/full") == config


@pytest.mark.parametrize("name", TINY_MODELS)
def test_for_model_stamps_what_the_model_is(name: str) -> None:
    model = tiny_model(name)
    config = MoTEConfig.for_model(model, suppress=[[2, 1]])
    sites = find_routers(model)
    assert config.fingerprint is not None
    assert config.fingerprint["model_type"] == model.config.model_type
    assert config.fingerprint["layers"] == [site.layer for site in sites]
    assert config.fingerprint["num_experts"] == [8] * len(sites)
    assert config.fingerprint["top_k"] == [site.top_k for site in sites]
    assert len(config.fingerprint["router_sha256"]) == 64
    config.check(model)
    assert MoTEConfig.from_dict(json.loads(json.dumps(config.to_dict()))).fingerprint == config.fingerprint


@pytest.mark.parametrize("name", TINY_MODELS)
def test_for_model_fingerprint_is_the_same_in_every_dtype(name: str) -> None:
    wide, narrow = tiny_model(name), tiny_model(name, torch.bfloat16)
    assert MoTEConfig.for_model(wide).fingerprint == MoTEConfig.for_model(narrow).fingerprint
    MoTEConfig.for_model(wide, suppress=[[2, 1]]).check(narrow)
    MoTEConfig.for_model(narrow, suppress=[[2, 1]]).check(wide)


@pytest.mark.parametrize(
    ("other", "overrides", "field"),
    [
        ("mixtral", {}, "model_type"),
        ("deepseek_v2", {}, "model_type"),
        ("deepseek_v3", {"first_k_dense_replace": 2}, "layers"),
        ("deepseek_v3", {"num_hidden_layers": 4}, "layers"),
        ("deepseek_v3", {"n_routed_experts": 16}, "num_experts"),
        ("deepseek_v3", {"num_experts_per_tok": 2}, "top_k"),
    ],
)
def test_check_config_for_another_model_is_refused(other: str, overrides: dict[str, Any], field: str) -> None:
    config = MoTEConfig.for_model(tiny_model("deepseek_v3"), suppress=[[2, 1]])
    model = tiny_model(other, **overrides)
    with pytest.raises(ModelMismatchError, match=rf"fingerprint\.{field}"):
        config.check(model)


def test_check_other_router_weights_are_refused() -> None:
    model = tiny_model("deepseek_v3")
    config = MoTEConfig.for_model(model, suppress=[[2, 1]])
    router = find_routers(model)[-1].module
    with torch.no_grad():
        router.weight[3, 3] += 0.1
    with pytest.raises(ModelMismatchError, match=r"router_sha256.*for_model"):
        config.check(model)


@pytest.mark.parametrize("part", ["lm_head", "model.embed_tokens", "model.layers.1.self_attn.o_proj"])
def test_check_other_weights_elsewhere_are_refused_by_name(part: str) -> None:
    model = tiny_model("mixtral")
    config = MoTEConfig.for_model(model, suppress=[[2, 1]])
    with torch.no_grad():
        model.get_submodule(part).weight.add_(1.0)
    with pytest.raises(ModelMismatchError, match=r"sampled_weights.*1 of 26 weights .* differ.*allow_other_weights"):
        config.check(model)


def test_check_config_of_a_version_that_took_no_sample_compares_routers_alone() -> None:
    model = tiny_model("mixtral")
    data = MoTEConfig.for_model(model, suppress=[[2, 1]]).to_dict()
    del data["fingerprint"]["sampled_weights"]
    config = MoTEConfig.from_dict(data)
    assert config.to_dict() == data
    model.lm_head.weight.data.add_(1.0)
    config.check(model)
    assert config.for_other_weights(model) is config


@pytest.mark.parametrize("field", ["router_sha256", "model_type", "layers", "num_experts", "top_k"])
def test_check_edited_fingerprint_is_refused(field: str) -> None:
    model = tiny_model("mixtral")
    data = MoTEConfig.for_model(model, suppress=[[2, 1]]).to_dict()
    edits = {
        "router_sha256": "0" * 64,
        "model_type": "olmoe",
        "layers": [0, 1, 3],
        "num_experts": [8, 8, 9],
        "top_k": [2, 2, 3],
    }
    data["fingerprint"][field] = edits[field]
    with pytest.raises(ModelMismatchError, match=rf"fingerprint\.{field}"):
        MoTEConfig.from_dict(data).check(model)


def test_for_model_survives_saving_and_loading_the_model(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v3", torch.bfloat16)
    config = MoTEConfig.for_model(model, suppress=[[2, 1]])
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        config.check(type(model).from_pretrained(tmp_path, dtype=dtype))


def test_for_model_dense_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no routed experts"):
        MoTEConfig.for_model(torch.nn.Linear(2, 2), suppress=[[0, 0]])
    with pytest.raises(UnsupportedError, match="not a model"):
        MoTEConfig.for_model("org/name")  # type: ignore[arg-type]


def test_for_model_unknown_field_is_refused_by_the_package() -> None:
    with pytest.raises(UnknownNameError, match="supress.*Did you mean 'suppress'"):
        MoTEConfig.for_model(tiny_model("mixtral"), supress=[[2, 1]])


def test_mote_config_saved_again_has_the_card_of_the_new_one_unless_the_card_is_hand_written(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    MoTEConfig(suppress=[[2, 1]]).save_pretrained(tmp_path)
    MoTEConfig(suppress=[[4, 9]]).save_pretrained(tmp_path)
    assert "[4, 9]" in card.read_text()
    assert "[2, 1]" not in card.read_text()
    card.write_text("mine")
    MoTEConfig(suppress=[[2, 1]]).save_pretrained(tmp_path)
    assert card.read_text() == "mine"


def test_mote_config_numpy_numbers_are_numbers() -> None:
    config = MoTEConfig(suppress=np.array([[2, 1]]), strength=np.float32(0.5), bias=[[np.int64(1), 0, np.float64(2)]])
    assert config == MoTEConfig(suppress=[[2, 1]], strength=0.5, bias=[[1, 0, 2.0]])
    assert MoTEConfig.from_dict(config.to_dict()) == config


def test_mote_config_other_selection_bias_is_another_fingerprint() -> None:
    model = tiny_model("deepseek_v3")
    config = MoTEConfig.for_model(model, suppress=[[1, 2]])
    for site in find_routers(model):
        site.module.e_score_correction_bias.neg_()
    with pytest.raises(ModelMismatchError, match="router_sha256"):
        config.check(model)
