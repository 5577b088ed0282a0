"""What is damaged or contradicts itself in this package's own records, and was accepted once; each must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changes import BY_NAME, drop, put
from safetensors import safe_open

from hf_mote import ActivationMap, EvaluationReport, ExpertRanking, FTRIResult, MoTEConfig
from hf_mote.commands.config_problems import read_all
from hf_mote.errors import ConfigError, DataError, HFMoTEError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.mote.tuned_values import TunedValues
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.sae.steering import SteeringConfig

REPORT = ("evaluation_report", "evaluation_report.json")
MOTE = ("mote_config", "mote_config.json")
SEARCH = ("expert_search", "expert_search.json")
ROUTES = ("counterfactual_routes", "counterfactual_routes.json")
STEERING = ("steering_config", "steering_config.json")


def twice(name: str, place: int) -> Callable[[Any], Any]:
    """Return what puts an entry of a list there twice."""

    def change(document: Any) -> Any:
        document[name].append(document[name][place])
        return document

    return change


def several(*changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what makes several changes."""

    def change(document: Any) -> Any:
        for one in changes:
            document = one(document)
        return document

    return change


def refused(reader: str, folder: Path, reason: str) -> None:
    """Hold that a folder is refused for a reason, by an error of this package."""
    with pytest.raises(HFMoTEError, match=reason):
        BY_NAME[reader].read(folder)


@pytest.mark.parametrize(
    ("reader", "file", "change", "reason"),
    [
        *((*MOTE, drop(name), rf"MoTEConfig\.{name}: is missing .got no {name}.\. Write it again") for name in (
            "hf_mote_version", "transformers_version", "suppress", "stimulate", "bias", "suppress_mode",
            "stimulate_weight", "bias_on", "scope", "thinking_tokens", "strength", "fingerprint", "base_model",
            "provenance",
        )),
        *((*STEERING, drop(name), rf"SteeringConfig\.{name}: is missing .got no {name}.") for name in (
            "edits", "hookpoint", "sae", "sae_digest", "scope", "thinking_tokens", "strength", "keep_error",
            "base_model", "provenance",
        )),
        (*STEERING, put("hf_mote_version", value=3), "hf_mote_version: must be text .got 3"),
        *((*REPORT, drop(name), rf"EvaluationReport\.{name}: is missing .got no {name}") for name in (
            "sharing", "labels_before", "labels_after", "control_labels", "controls_sharing", "unclear",
            "conversations", "turns_unchanged", "coherence", "disjoint_chances", "controls_exhausted", "notes",
            "selectivity", "not_worse", "preregistration", "seed",
        )),
        (*REPORT, put("labels_before", value=[]), "must go together .got labels_after"),
        (*REPORT, put("labels_after", value=[]), "must go together .got labels_before"),
        (*REPORT, several(put("labels_before", value=[]), put("labels_after", value=[])), "got control_labels"),
        (*REPORT, put("controls_sharing", value=[]), "controls_sharing: wrong type or value .*1 of 3 controls"),
        (*REPORT, put("unclear", value=25), "unclear: wrong type or value .got 25, expected .* from 0 to 24"),
        (*REPORT, drop("side_effects", "scope"), "side_effects.scope: is missing"),
        (*REPORT, drop("conversations", 0, "id"), r"conversations\[0\].id: is missing"),
        (*REPORT, drop("config", "strength"), "MoTEConfig.strength: is missing"),
        (*REPORT, put("dose", value={}), "dose: wrong type or value .got .., expected a list"),
        (*REPORT, put("conversations", value={}), "conversations: wrong type or value"),
        (*REPORT, put("not_worse", value=""), "not_worse: wrong type or value"),
        (*REPORT, put("preregistration", value="ab"), "preregistration: wrong type or value .got 'ab'"),
        (*SEARCH, put("evaluations", value=0), "evaluations: must be a whole number .got 0, expected 3 to 33"),
        (*SEARCH, put("evaluations", value=2), "evaluations: must be a whole number .got 2, expected 3 to 33"),
        (*SEARCH, put("evaluations", value=34), "evaluations: must be a whole number .got 34"),
        (*ROUTES, put("routes", 0, "experts_in", value=[1, 0]), "as many other experts .*got .2,. out, .1, 0. in"),
        (*ROUTES, put("routes", 0, "experts_in", value=[2]), "as many other experts .*got .2,. out, .2,. in"),
        (*ROUTES, put("routes", 1, "experts_out", value=[1, 1]), "as many other experts"),
        (*ROUTES, put("fingerprint", "top_k", value=[1, 1, 1]), "as many other experts .*at most 1 each"),
        (*ROUTES, twice("routes", 0), "must name a route once .got layer 1"),
    ],
)  # fmt: skip
def test_json_record_is_refused(
    tmp_path: Path, reader: str, file: str, change: Callable[[Any], Any], reason: str
) -> None:
    BY_NAME[reader].make(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(reader, tmp_path, reason)


def test_report_of_latents_lacks_a_field_of_its_config(tmp_path: Path) -> None:
    BY_NAME[REPORT[0]].make(tmp_path)
    path = tmp_path / REPORT[1]
    report = json.loads(path.read_text())
    whole = SteeringConfig({3: "ablate"}, hookpoint="model.layers.1").to_dict()
    path.write_text(json.dumps({**report, "config": whole}))
    assert EvaluationReport.from_pretrained(tmp_path).units == "latents"
    for name in ("strength", "scope", "keep_error", "sae_digest"):
        config = {key: value for key, value in whole.items() if key != name}
        path.write_text(json.dumps({**report, "config": config}))
        refused(REPORT[0], tmp_path, f"config.{name}: is missing")


def test_unclear_responses_of_a_setting_of_a_sweep_count_those_of_all(tmp_path: Path) -> None:
    BY_NAME[REPORT[0]].make(tmp_path)
    path = tmp_path / REPORT[1]
    report = json.loads(path.read_text())
    emptied: dict[str, Any] = dict.fromkeys(("unrelated", "unrelated_before", "unrelated_after", "dose"), [])
    emptied |= {"conversations": [], **dict.fromkeys(("unrelated_unchanged", "turns_unchanged", "side_effects"))}
    path.write_text(json.dumps({**report, **emptied, "unclear": 1000}))
    assert EvaluationReport.from_pretrained(tmp_path).unclear == 1000


def test_config_written_by_hand_may_leave_fields_out(tmp_path: Path) -> None:
    for data in ({"schema_version": 1, "suppress": [[2, 1]]}, {"schema_version": 1}):
        (tmp_path / MoTEConfig.file_name).write_text(json.dumps(data))
        assert MoTEConfig.from_pretrained(tmp_path) == MoTEConfig(suppress=data.get("suppress", []))  # type: ignore[arg-type]
    short = {"schema_version": 1, "edits": [[3, "ablate", 0.0]], "hookpoint": "model.layers.1"}
    (tmp_path / SteeringConfig.file_name).write_text(json.dumps(short))
    assert SteeringConfig.from_pretrained(tmp_path).strength == 1.0
    with pytest.raises(ConfigError, match="hookpoint: is missing"):
        SteeringConfig.from_dict({"schema_version": 1, "edits": []})


def test_fields_that_are_written_only_where_they_are_used_may_be_missing(tmp_path: Path) -> None:
    config = MoTEConfig(suppress=[[2, 1]])
    assert not {"gain", "positions", "unverified"} & config.to_dict().keys()
    config.save_pretrained(tmp_path)
    assert MoTEConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("kind", [MoTEConfig, SteeringConfig])
def test_validate_shows_missing_fields_beside_the_other_problems(tmp_path: Path, kind: Any) -> None:
    reader = MOTE if kind is MoTEConfig else STEERING
    BY_NAME[reader[0]].make(tmp_path)
    path = tmp_path / kind.file_name
    data = json.loads(path.read_text())
    for name in ("hf_mote_version", "base_model", "thinking_tokens"):
        del data[name]
    stamped = kind is MoTEConfig  # by the version of transformers still
    path.write_text(
        json.dumps({**data, "strength": "x", "hf_mote_version": "0"} if not stamped else {**data, "strength": "x"})
    )
    found = read_all(path, kind)
    assert found.config is not None
    assert {"strength", "base_model", "thinking_tokens"} <= found.left_out
    lost = (
        "hf_mote_version: is missing (got no hf_mote_version, " if stamped else "thinking_tokens: is missing (got no "
    )
    assert [one for one in found.wrong if one.startswith(f"{kind.file_name}: {lost}")], found.wrong
    assert [one for one in found.wrong if one.startswith(f"{kind.file_name}: strength: ")], found.wrong
    assert len(found.wrong) == 2


# Files of tensors: what is changed of the tensors, by name, and of the metadata.

RESULT, RANKING = ("ftri_result", "ftri_result.safetensors"), ("expert_ranking", "expert_ranking.safetensors")
OPTIMIZED = ("optimized_ranking", "expert_ranking.safetensors")
LINKS = ("predicted_latent_expert_map", "latent_expert_map.safetensors")
TUNED = ("tuned_values", TunedValues.file_name)
UNEVEN = put("fingerprint", "num_experts", value=[4, 2, 4])


def tensor(name: str, *place: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what sets one value of a tensor, or all of them."""

    def change(tensors: dict[str, Any]) -> Any:
        tensors[name] = tensors[name].clone()
        tensors[name][place or ...] = value
        return tensors

    return change


def columns(*names: str, number: int) -> Callable[[dict[str, Any]], Any]:
    """Return what leaves so many experts in tensors."""

    def change(tensors: dict[str, Any]) -> Any:
        return tensors | {name: tensors[name][..., :number].clone() for name in names}

    return change


def same(given: Any) -> Any:
    """Leave it."""
    return given


def fewer(tensors: dict[str, Any]) -> Any:
    """Choose no more experts than a router with one expert for each token does."""
    counts = torch.zeros_like(tensors["counts"])
    counts[..., 0] = 3
    return tensors | {"counts": counts, "weights": counts / 2}


def from_maps(**said: str) -> Callable[[Any], Any]:
    """Return what says in a result that its maps are from elsewhere."""
    return put("provenance", value={"source": "maps", **said})


def changed(folder: Path, reader: str, file: str, of_tensors: Any, of_metadata: Any) -> None:
    """Make the files of a reader, and change one of them; safetensors files name their tensors anew."""
    BY_NAME[reader].make(folder)
    kind = json.loads(read_header(folder / file))["kind"]
    tensors, metadata = read_tensors(folder / file, kind=kind)
    write_tensors(folder / file, of_tensors(tensors), of_metadata(metadata))


def read_header(path: Path) -> str:
    """Return the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return str(next(iter(file.metadata().values())))


@pytest.mark.parametrize(
    ("reader", "file", "of_tensors", "of_metadata", "reason"),
    [
        (*RESULT, drop("prompt_index"), same, "must hold the tensors that it names .*expected .*prompt_index"),
        (*RESULT, several(drop("response_tokens"), drop("response_lengths")), same, "the tensors that it names"),
        (*RESULT, same, put("tensors", value=7), "must hold the tensors that it names"),
        (
            *RESULT,
            tensor("prompt_index", 2, value=3),
            same,
            r"prompt_index: must name the first of equal prompts .got .0, 1, 3",
        ),
        (*RESULT, tensor("prompt_index", 0, value=1), same, "prompt_index: must name the first of equal prompts"),
        (*RESULT, tensor("prompt_index", 4, value=2), same, "prompt_index: must name the first of equal prompts"),
        (*RESULT, same, UNEVEN, "FTRIResult.counts: must be 0 for experts that a layer does not have .got .*layer 1"),
        (
            *RESULT,
            several(*(tensor(name, 0, 1, slice(2, 4), value=0) for name in ("counts", "weights"))),
            several(UNEVEN, put("provenance", value={})),
            "FTRIResult.counts: must be 0",
        ),
        (
            *RESULT,
            columns("counts", "weights", number=3),
            same,
            "must hold all experts of the fingerprint .got 3 experts, expected 4",
        ),
        (*RESULT, same, put("fingerprint", "top_k", value=[2, 1, 2]), "counts: must be of at most top_k experts"),
        (*RESULT, tensor("weights", value=0), same, "weights: must not be 0 for all experts that were chosen"),
        (*RESULT, tensor("counts", 0, value=0), same, "weights: must be 0 for experts that were not chosen"),
        (*RESULT, same, drop("provenance"), "lacks an entry .expected provenance"),
        (*RESULT, same, from_maps(weights="recorded"), "provenance.source: must not be 'maps' beside tokens"),
        (*RESULT, same, from_maps(), "provenance.weights: must say whether they were .got None"),
        (*RESULT, same, from_maps(weights="not"), "provenance.weights: must say whether they were .got 'not'"),
        (
            *RANKING,
            tensor("p", 0, 1, value=float("nan")),
            same,
            r"ExpertRanking.p, q: must both be numbers, or both NaN .got nan and 0",
        ),
        (
            *RANKING,
            tensor("q", 0, 1, value=float("nan")),
            same,
            "ExpertRanking.p, q: must both be numbers, or both NaN",
        ),
        (*RANKING, tensor("low", 2, 3, value=float("nan")), same, "ExpertRanking.low, high: .* in row 2, expert 3"),
        (*RANKING, same, UNEVEN, "ExpertRanking.score: must be 0 for experts that a layer does not have"),
        (
            *RANKING,
            columns("score", "low", "high", "p", "q", number=3),
            same,
            "must hold all experts .*got 3 experts, expected 4",
        ),
        (*RANKING, same, drop("least_p"), "lacks an entry .expected least_p"),
        (*RANKING, several(drop("p"), drop("q")), same, "least_p: must not be there without p"),
        (
            *OPTIMIZED,
            same,
            put("optimized", "sufficient", 0, 1, value=True),
            "sufficient: must be a whole number .got True",
        ),
        (
            *OPTIMIZED,
            same,
            put("optimized", "carriers", 0, 1, value=4),
            "carriers: must be a whole number .got 4, expected 0 to 3",
        ),
        (*OPTIMIZED, same, put("optimized", "carriers", 0, value=[2, 1]), "carriers: must name an expert once"),
        (
            *OPTIMIZED,
            same,
            put("optimized", "carriers", value=[[1, 2]]),
            r"carriers: must hold the sufficient set .*got no \[.0, 3.\]",
        ),
        (*OPTIMIZED, same, put("optimized", "sufficient", value=[]), "sufficient: must be that of a seed"),
        (
            *OPTIMIZED,
            same,
            put("optimized", "suppress_mode", value="zero"),
            "completed: must be a set of the completion",
        ),
        (
            *OPTIMIZED,
            same,
            put("optimized", "completed", value=[[0, 3]]),
            "completed: must be a set of the completion",
        ),
        (*OPTIMIZED, tensor("score", value=-1.0), same, "score: must rank the set that is suppressed first"),
        (*OPTIMIZED, tensor("score", 2, 3, value=9.0), same, r"score: must rank .*got .*2, 3.*expected .*0, 3"),
        (
            *OPTIMIZED,
            same,
            put("optimized", "by_seed", value=[[[1, 2], [0, 3]]]),
            "by_seed: must hold a set for each seed of the path .got 1 sets, expected 2",
        ),
        (
            *OPTIMIZED,
            same,
            put("optimized", "path", 1, "experts", value=[[1, 2]]),
            r"by_seed.0.: must be a part of a set of the path .got ..1, 2., .0, 3",
        ),
        (*OPTIMIZED, same, drop("optimized", "completion"), "lacks an entry .expected completion"),
        (*OPTIMIZED, same, put("optimized", "path", 0, "gone", value=1.5), "gone: must be a number .got 1.5"),
        (*OPTIMIZED, same, put("optimized", "goal", value="1"), "goal: must be a number .got '1'"),
        (
            *LINKS,
            tensor("together", 2, 0, 1, value=3),
            same,
            r"together: must be as many .*got 3 for latent 2, 1\.1, expected 4 or more",
        ),
        (
            *LINKS,
            tensor("values", 0, 1, 1, value=0.5),
            same,
            "values: must be 0 for an expert that is chosen on no token, or on",
        ),
        (
            *LINKS,
            same,
            put("fingerprint", "top_k", value=[1, 2, 1]),
            "chosen: must be of at most top_k experts for each token",
        ),
        (*LINKS, same, put("fingerprint", "num_experts", value=[2, 2, 1]), "values: must be 0 for experts|top_k"),
        (*LINKS, same, drop("fingerprint"), "lacks an entry .expected fingerprint"),
        (
            *TUNED,
            same,
            put("origin", "fingerprint", "num_experts", value=[4, 4, 2]),
            "must be 0 for experts that a layer does not",
        ),
        (*TUNED, same, drop("origin", "strength"), "MoTEConfig.strength: is missing"),
    ],
)
def test_record_of_tensors_is_refused(
    tmp_path: Path, reader: str, file: str, of_tensors: Any, of_metadata: Any, reason: str
) -> None:
    changed(tmp_path, reader, file, of_tensors, of_metadata)
    refused(reader, tmp_path, reason)


def test_result_of_version_0_1_does_not_name_its_tensors(tmp_path: Path) -> None:
    changed(tmp_path, *RESULT, drop("prompt_index"), drop("tensors"))
    assert FTRIResult.from_pretrained(tmp_path).prompt_index is None


@pytest.mark.parametrize(
    "index",
    [[0, 1, 0, 1, 4, 5], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0] * 6, [0, 1, 2, 0, 1, 2]],
)
def test_index_of_prompts_given_twice_or_run_several_times_is_read(tmp_path: Path, index: list[int]) -> None:
    changed(tmp_path, *RESULT, tensor("prompt_index", value=torch.tensor(index)), same)
    found = FTRIResult.from_pretrained(tmp_path).prompt_index
    assert found is not None
    assert found.tolist() == index


def test_layers_with_fewer_experts_are_read_where_they_are_empty(tmp_path: Path) -> None:
    changed(tmp_path, *RESULT, fewer, UNEVEN)
    assert FTRIResult.from_pretrained(tmp_path).counts.shape == (6, 3, 4)
    changed(tmp_path, *RANKING, tensor("score", 1, slice(2, 4), value=0), UNEVEN)
    assert ExpertRanking.from_pretrained(tmp_path).score.shape == (3, 4)


def test_gates_of_experts_that_a_layer_does_not_have_are_read_in_files_of_version_0_1(tmp_path: Path) -> None:
    def of_version_0_1(metadata: dict[str, Any]) -> dict[str, Any]:
        for name in ("completed", "completion", "suppress_mode"):
            del metadata["optimized"][name]
        return metadata

    uneven = put("fingerprint", "num_experts", value=[4, 3, 4])
    changed(tmp_path, *OPTIMIZED, same, several(of_version_0_1, uneven))
    found = OptimizedRanking.from_pretrained(tmp_path)
    assert found.completed == found.completion == ()
    assert found.chosen == found.sufficient == ((1, 2), (0, 3))


def test_maps_from_elsewhere_may_be_differences_and_hold_no_weights(tmp_path: Path) -> None:
    def elsewhere(tensors: dict[str, Any]) -> dict[str, Any]:
        kept = {name: part for name, part in tensors.items() if not name.startswith("response_")}
        return kept | {"counts": tensors["counts"] * -7.5, "weights": tensors["weights"] * 0}

    def named(metadata: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in metadata["tensors"] if not name.startswith("response_")]
        return metadata | {"provenance": {"source": "maps", "weights": "not recorded"}, "tensors": names}

    changed(tmp_path, *RESULT, elsewhere, named)
    assert float(FTRIResult.from_pretrained(tmp_path).counts.min()) < 0


def test_maps_of_experts_that_a_layer_does_not_have_make_no_result() -> None:
    grid = torch.ones(2, 4, dtype=torch.float64)
    one = ActivationMap(grid, grid / 2, (0, 1), 9.0)
    known = {"layers": [0, 1], "model_type": "m", "num_experts": [4, 2], "router_sha256": "ab", "top_k": [2, 2]}
    with pytest.raises(DataError, match=r"maps\[0\].counts: must be 0 for experts that a layer does not have"):
        FTRIResult.from_maps([one, one], ["a", "b"], fingerprint=known)
    with pytest.raises(
        DataError, match=r"maps\[0\]: must hold all experts of the fingerprint .got 4 experts, expected 8"
    ):
        FTRIResult.from_maps([one, one], ["a", "b"], fingerprint={**known, "num_experts": [8, 8]})
