"""THE table of readers: everything of the package that reads what somebody else may have written.

A reader makes a folder of valid files once, says how each is damaged, reads the folder, and uses what it accepted: an
error of another library there is as foreign as one while reading. A new reader is one entry.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from evaluation_reports import report_of
from further_readers import FURTHER, use_sae
from mutations import Mutation, archive, json_document, json_lines, raw, safetensors_file, text
from reader import Reader
from safetensors.torch import save_file
from tiny_saes import HIDDEN, TinySAE

from hf_mote import (
    ActivationMap,
    CounterfactualRoutes,
    EvaluationReport,
    ExpertRanking,
    ExpertSearch,
    FTRIResult,
    MoTEConfig,
    SAEModel,
    export_sae,
    load_organism,
    load_sae,
)
from hf_mote.commands.conversations import read_conversations
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import read_prompts
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.files import read_json, read_tensors, write_json, write_tensors
from hf_mote.links.latent_expert_map import LatentExpertMap
from hf_mote.mote.tuned_values import TunedValues
from hf_mote.ranking.causal.completion import CompletionStep
from hf_mote.ranking.causal.counterfactual import Route
from hf_mote.ranking.causal.optimized import OptimizedRanking, PathPoint
from hf_mote.ranking.imaging.run_folder import ExpectedBatch, ImagedBatch, read_batch, write_batch
from hf_mote.runs.folder import RunFolder
from hf_mote.sae.report import SAEReport
from hf_mote.sae.steering import SteeringConfig
from hf_mote.sharing.cards import CardNotes
from hf_mote.statistics.contrast import adjusted
from hf_mote.statistics.rates import Rate

__all__ = ["READERS", "Reader"]


# What is saved in one file.


def _config() -> MoTEConfig:
    return MoTEConfig(
        suppress=[[1, 2], [2, 0]],
        stimulate=[[0, 1]],
        bias=[[0, 3, 0.5]],
        gain=[[0, 2, 1.5], [1, 3, 0.0]],
        positions=[-1, 0, 7],
        stimulate_weight=0.5,
        fingerprint={
            "layers": [0, 1, 2],
            "model_type": "mixtral",
            "num_experts": [4, 4, 4],
            "router_sha256": "ab",
            "top_k": [2, 2, 2],
        },
        base_model="org/model",
        provenance={"method": "ftri", "seed": 0, "list": [1, {"a": None}]},
    )


def _use_config(config: MoTEConfig) -> None:
    assert MoTEConfig.from_dict(config.to_dict()) == config
    config._card(CardNotes(), [])
    repr(config)


def _tuned() -> TunedValues:
    values = torch.linspace(-1, 1, 8).reshape(2, 4)
    return TunedValues((0, 2), MoTEConfig(fingerprint=_config().fingerprint, base_model="org/model"), values, -values)


def _use_tuned(tuned: TunedValues) -> None:
    _use_config(tuned.to_config())
    tuned._card(CardNotes(), [])


def _map() -> ActivationMap:
    counts = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    return ActivationMap(counts, counts / 3, (1, 2, 5), 9.0, {"model": "m", "phase": "prompt", "n": 3})


def _use_map(found: ActivationMap) -> None:
    found.top(1)
    (found + found - found * 0.5).top(2, "weight")
    found._card(CardNotes(), [])
    repr(found)


def _ranking() -> ExpertRanking:
    score = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    return ExpertRanking(
        score=score,
        layers=(0, 1, 2),
        method="ftri",
        target="refusal",
        low=score - 0.1,
        high=score + 0.1,
        p=score.abs(),
        q=torch.from_numpy(adjusted(score.abs().numpy())),
        confidence=0.95,
        fingerprint=_config().fingerprint,
        provenance={"score": "mean_difference", "permutations": 99, "compared": "4 against 5 prompts", "seed": 0},
        least_p=0.01,
    )


def _optimized() -> OptimizedRanking:
    plain, pairs = _ranking(), ((1, 2), (0, 3))
    score = plain.score.clone()
    for pair in pairs:  # the layers are 0, 1 and 2
        score[pair] += 6
    return OptimizedRanking(
        score=score,
        layers=plain.layers,
        method="optimization",
        target="refusal",
        fingerprint=plain.fingerprint,
        provenance={"prompts": 8, "unit": "probability", "goal": 0.0},
        sufficient=pairs,
        carriers=tuple(sorted((*pairs, (2, 1)))),
        by_seed=(pairs, ()),
        path=(PathPoint(0, 0.1, pairs[:1], 2.5, 0.5), PathPoint(1, 0.03, pairs, -0.5, 1.0)),
        whole_score=4.0,
        completed=pairs,
        suppress_mode="drop",
        completion=(CompletionStep("drop", pairs, -3.0, -2.5, 1.0),),
    )


def _use_optimized(found: OptimizedRanking) -> None:
    _use_ranking(found)
    assert found.agreement <= 1 or len(found.by_seed) < 2
    if found.chosen:
        _use_config(found.to_config())


def _use_ranking(found: ExpertRanking) -> None:
    assert isinstance(found.verdict, str)
    found.rows(min(3, len(found)))
    found.rank_of(found.layers[0], 0)
    assert found.least_q is None or 0 < found.least_q <= 1
    found._card(CardNotes(), [])
    repr(found)


def _search() -> ExpertSearch:
    fingerprint = _config().fingerprint
    assert fingerprint is not None
    return ExpertSearch([(1, 2), (0, 3)], [2.5, 1.0, -0.5], 7, fingerprint)


def _use_search(found: ExpertSearch) -> None:
    if len(set(found.experts)) == len(found.experts):
        found.to_config()
    found._card(CardNotes(), [])
    repr(found)


def _routes() -> CounterfactualRoutes:
    fingerprint = _config().fingerprint
    assert fingerprint is not None
    routes = [Route(1, (2,), (0,), 0.25, -1.5), Route(0, (3, 1), (0, 2), 0.5, 0.75)]
    return CounterfactualRoutes(routes, 4, 2.5, "yes", "nats", fingerprint)


def _use_routes(found: CounterfactualRoutes) -> None:
    found.to_markdown()
    found.to_dict()
    found._card(CardNotes(), [])
    repr(found)


def _result() -> FTRIResult:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 4, (6, 3, 4), generator=generator).float()  # of 6 tokens, with 2 experts each
    return FTRIResult(
        prompts=[f"prompt {i}" for i in range(6)],
        responses=[f"response {i}" for i in range(6)],
        classes=["refusal", "answer"] * 3,
        counts=counts,
        weights=counts / 2,
        num_tokens=torch.full((6,), 6.0),
        layers=(0, 1, 2),
        scope="prompt",
        fingerprint=_config().fingerprint,
        base_model="org/model",
        provenance={"seed": 0},
        prompt_index=torch.tensor([0, 1, 0, 1, 4, 5]),
        response_tokens=[[1, 2], [], [3], [4], [5], [6]],
    )


def _use_result(found: FTRIResult) -> None:
    repr(found)
    for name, seen in found.maps.items():
        seen.top(1)
        if len(found.class_sizes) > 1:
            found.rank(name, resamples=0)


def _report() -> EvaluationReport:
    return report_of(
        target="refusal",
        before=Rate.of(3, 4),
        after=Rate.of(1, 4),
        controls=[0.75, 0.5, 0.25],
        unrelated_unchanged=Rate.of(1, 2),
        config=_config().to_dict(),
        dose=[(0.5, 0.5)],
        prompts=["a", "b", "c", "d"],
        responses_before=["e"] * 4,
        responses_after=["f"] * 4,
        labels_before=["refusal"] * 3 + ["answer"],
        labels_after=["refusal"] + ["answer"] * 3,
        unrelated=["u", "v"],
        unrelated_before=["x", "y"],
        unrelated_after=["x", "z"],
        side_effects=SideEffects(0.1, 2.0, 2.1, 30),
        conversations=[Conversation(["one", "two"], ["a", "b"], ["a", "c"], "81", "x")],
        turns_unchanged=Rate.of(1, 2),
        control_labels=[
            ["refusal"] * 3 + ["answer"],
            ["refusal", "answer"] * 2,
            ["refusal"] + ["answer"] * 3,
        ],
        controls_sharing=[False, True, False],
        sharing=1,
        unclear=2,
    )


def _use_report(found: EvaluationReport) -> None:
    assert isinstance(found.verdict, str)
    found.beats_controls()
    found.to_dict()
    found._card(CardNotes(), [])
    str(found.side_effects)


def _steering() -> SteeringConfig:
    edits: Any = {7: 4.0, 3: "ablate", 1: ("multiply", 0.5), 2: ("clamp", 1.0)}
    return SteeringConfig(edits, hookpoint="model.layers.1", sae="org/sae", sae_digest="ab", provenance={"seed": 0})


def _use_steering(found: SteeringConfig) -> None:
    assert SteeringConfig.from_dict(found.to_dict()) == found
    found._card(CardNotes(), [])


def _sae_report() -> SAEReport:
    names = {field.name: field.type for field in dataclasses.fields(SAEReport)}
    values: dict[str, Any] = dict.fromkeys(names, 0.5)
    values |= dict.fromkeys(("model", "hookpoint", "output_hookpoint", "architecture"), "x")
    values |= {"num_latents": 3, "tokens": 10, "predictions": 9}
    ablations = dict.fromkeys(("zero", "mean", "resample"), 2.0)
    values |= {"ce": {"clean": 1.0, "sae": 1.5, **ablations}, "kl": {"clean": 0.0, "sae": 0.5, **ablations}}
    values |= {"ce_recovered": dict.fromkeys(ablations, 0.5), "kl_recovered": dict.fromkeys(ablations, 0.75)}
    values |= {
        "density": [0.1, 0.0, 1.0],
        "l0": 1.1,
        "zipf": {"exponent": 1.0, "offset": 0.0, "scale": 0.9, "r2": 0.8},
    }
    values |= {"underused_fraction": 2 / 3, "relative_reconstruction_bias": 1.0}
    values |= dict.fromkeys(("dead_fraction", "dying_fraction", "freq_over_10_percent"), 1 / 3)
    values |= {"freq_over_1_percent": 2 / 3, "normalized_freq_over_1_percent": 1.0}
    values |= {"normalized_freq_over_10_percent": 1 / 1.1}
    values |= {"l0_quantiles": {"0.05": 1.0, "0.5": 1.0, "0.95": 2.0}}
    tenths = [1.0] * 8 + [2.0]  # of the 9 predictions
    values |= {"adaptive": {"pearson": 0.1, "spearman": 0.2, "l0_by_tenth_of_loss": tenths}}
    return SAEReport(**values)


def _use_sae_report(found: SAEReport) -> None:
    found.rows()
    found.to_saebench()
    found._card(CardNotes(), [])


def _links() -> LatentExpertMap:
    values = torch.arange(24, dtype=torch.float64).reshape(3, 2, 4) - 7
    values[1] = 0  # of the latent that is active nowhere
    tokens = torch.tensor([3, 0, 9])
    return LatentExpertMap(values, (7, 0, 2), (1, 4), "intervention", tokens, {"model": "m", "edit": "ablate"})


def _predicted_links() -> LatentExpertMap:
    tokens, chosen, read = torch.tensor([3, 4, 9]), torch.tensor([[3, 5], [4, 10]]), 10
    values = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 2, 2)
    values[:, 1, 1] = 0  # of the expert that is chosen on every token
    least = (tokens[:, None, None] + chosen - read).clamp(min=0)
    together = torch.minimum(
        least + torch.arange(12).reshape(3, 2, 2) % 2, torch.minimum(tokens[:, None, None], chosen)
    )
    fingerprint = {
        "layers": [1, 2, 4],
        "model_type": "mixtral",
        "num_experts": [2, 2, 2],
        "router_sha256": "ab",
        "top_k": [1, 2, 2],
    }
    return LatentExpertMap(
        values, (7, 0, 2), (1, 4), "prediction", tokens, {"model": "m"}, fingerprint=fingerprint, together=together,
        chosen=chosen, num_tokens=read,
    )  # fmt: skip


def _use_links(found: LatentExpertMap) -> None:
    for link in found.top(5):
        assert found.at(*link[:3]) == link.value
        if found.method == "prediction":
            assert found.prediction(*link[:3]).correlation == link.value
    found.for_latent(found.latents[0])
    found.for_expert(found.layers[0], 0)


def _one_file(name: str, make: Callable[[], Any], use: Callable[[Any], None], mutation: Mutation) -> Reader:
    kind = type(make())

    def read(folder: Path) -> None:
        found = kind.from_pretrained(folder)
        use(found)
        # What was accepted can be written, and says the same when it is read again.
        found.save_pretrained(folder / "again")
        use(kind.from_pretrained(folder / "again"))

    return Reader(name, lambda folder: make().save_pretrained(folder), read, {kind.file_name: mutation})


# Run folders.

_SETTINGS = {"seed": 0, "batch_size": 2, "fingerprint": _config().fingerprint, "generation": {"do_sample": False}}


def _run_folder(folder: Path) -> RunFolder:
    return RunFolder(folder, _SETTINGS)


def _make_run(folder: Path) -> None:
    run = _run_folder(folder)
    counts = torch.zeros(2, 3, 4)
    counts[:, :, :2] = 3
    write_batch(run, 0, ImagedBatch([[1, 2], [3]], counts, counts / 6, torch.tensor([3.0, 3.0])))


def _read_run(folder: Path) -> None:
    expected = ExpectedBatch(
        [3, 3], counts_prompts=True, top_k=[2, 2, 2], num_experts=4, vocab_size=50, max_new_tokens=2
    )
    batch = read_batch(_run_folder(folder), 0, expected)
    if batch is not None:
        assert len(batch.tokens) == len(batch.counts)


# Sparse autoencoders.


@cache
def _sae(name: str, kind: str = "autoencoder") -> SAEModel:
    return TinySAE(name, kind).model(hookpoint="model.layers.3", base_model="org/model")


def _native(name: str, *, sharded: bool = False) -> Reader:
    def make(folder: Path) -> None:
        _sae(name).save_pretrained(folder, **({"max_shard_size": "1KB"} if sharded else {}))

    files: dict[str, Mutation] = {"config.json": json_document}
    if sharded:
        files["model.safetensors.index.json"] = json_document
        files["model-00001-of-00003.safetensors"] = safetensors_file
    else:
        files["model.safetensors"] = safetensors_file

    def read(folder: Path) -> None:
        use_sae(SAEModel.from_pretrained(folder))

    return Reader(f"sae/{name}{'-sharded' if sharded else ''}", make, read, files, share=0.6, extra=_beside)


def _beside(folder: Path, random: Random) -> str:
    name = random.choice(("adapter_config.json", "quantize_config.json", "config.json", "kernels.lock", "evil.py"))
    content = random.choice(("{}", "[]", '{"base_model_name_or_path": "org/other"}', "", "open('ran', 'w')"))
    (folder / name).write_text(content)
    return f"{name} = {content}"


def _foreign(format: str, name: str, files: Mapping[str, Mutation], kind: str = "autoencoder") -> Reader:
    def make(folder: Path) -> None:
        export_sae(_sae(name, kind), folder, format)

    def read(folder: Path) -> None:
        use_sae(load_sae(folder))

    return Reader(f"sae/{format}/{name}", make, read, files, share=0.6, extra=_beside)


def _gemma_tensors() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        "W_enc": random.normal(size=(HIDDEN, 20)).astype(np.float32),
        "b_enc": np.zeros(20, dtype=np.float32),
        "W_dec": random.normal(size=(20, HIDDEN)).astype(np.float32),
        "b_dec": np.zeros(HIDDEN, dtype=np.float32),
        "threshold": np.ones(20, dtype=np.float32),
    }


def _make_gemma_1(folder: Path) -> None:
    np.savez(folder / "params.npz", **_gemma_tensors())  # type: ignore[arg-type]


def _make_gemma_2(folder: Path) -> None:
    tensors = {key.lower(): torch.from_numpy(value) for key, value in _gemma_tensors().items()}
    save_file(tensors, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.3.output"}
    (folder / "config.json").write_text(json.dumps(config))


def _read_sae(folder: Path) -> None:
    use_sae(load_sae(folder))


# Organisms.


def _make_organism(folder: Path) -> None:
    shipped = Path(load_organism("language").model.config.name_or_path)
    for path in shipped.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())


def _read_organism(folder: Path) -> None:
    organism = load_organism(str(folder))
    organism.tokenizer("Where is it?")
    assert all(layer < 4 and expert < 64 for layer, expert in organism.planted)


# Prompts.


def _read_prompts(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        asked = read_prompts(str(folder / name), Organisms(), limit=3)
        assert len(asked.prompts) == len(asked.records) == len(asked.texts)
        for prompt in asked.texts:
            prompt.encode()
        if asked.has("answer"):
            asked.column("answer")

    return read


_LINES = [
    {"prompt": "What is it?", "class": "a", "answer": "That."},
    {"prompt": [{"role": "user", "content": "Hi"}], "class": "b", "answer": "1"},
    {"prompt": 'Why, "so"?', "class": "a", "answer": "x"},
]


def _prompts(name: str, content: str, mutation: Mutation) -> Reader:
    return Reader(
        f"prompts/{name}", lambda folder: (folder / name).write_text(content), _read_prompts(name), {name: mutation}
    )


def _make_conversations(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"question_id": 81, "category": "x", "turns": ["one", "two"]}, {"turns": ["three"]}]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_conversations(folder: Path) -> None:
    for one in read_conversations(str(folder / "question.jsonl"), limit=2):
        assert one.turns


# The two formats themselves.


def _make_json(folder: Path) -> None:
    write_json(folder / "a.json", {"a": [1, 2.5, None, True, "x"], "b": {"c": {"d": []}}})


def _make_tensors(folder: Path) -> None:
    write_tensors(folder / "a.safetensors", {"x": torch.ones(2, 3), "y": torch.arange(4)}, {"kind": "k", "z": [1]})


def _read_tensors(folder: Path) -> None:
    tensors, metadata = read_tensors(folder / "a.safetensors", kind="k")
    assert metadata["kind"] == "k"
    for tensor in tensors.values():
        tensor.numel()


# Routing that an engine recorded: no file, but just as foreign. The file holds the seed of the arguments.


def _read_routed(folder: Path) -> None:
    random = Random(int.from_bytes((folder / "seed").read_bytes()[:8], "big"))
    routing = np.random.default_rng(0).integers(0, 4, (9, 3, 1))
    weights = np.ones((9, 3, 1))
    experts: Any = random.choice(
        (
            routing,
            routing.tolist(),
            torch.from_numpy(routing),
            routing.astype(
                random.choice(("u1", "i1", "i2", "u8", "f4", "f2", "c8", "bool", "O", "U3", "M8[s]", "V4"))
            ),
            routing.astype("i8") * random.choice((1, -1, 10**9, 2**60)),
            routing[random.choice((slice(0), slice(1), slice(3), slice(None, None, 2)))],
            routing[:, random.choice((slice(0), slice(1), slice(2)))],
            routing.reshape(-1),
            torch.from_numpy(routing).to(
                random.choice((torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.complex64))
            ),
            torch.from_numpy(routing).to_sparse(),
            torch.zeros(9, 3, 1, device="meta"),
            torch.zeros(9, 3, 1, dtype=torch.int64).expand(9, 3, 2),
            np.ma.masked_array(routing, routing > 2),
            [[[0]], [[0], [1]]],
            [[["a"]]],
            [[[None]]],
            None,
            "experts",
            b"experts",
            {},
            {0: [[1]]},
            iter([1]),
            object(),
            10**400,
            [[[10**400]]],
            [],
            [[[]]],
            float("nan"),
        )
    )
    odd: tuple[Any, ...] = (0, -1, 1, 4, 4.0, 2.5, "4", None, True, [4], 10**400, 2**62, np.int64(4), np.array([4]),
                            np.array(4), torch.tensor(4), float("nan"), {}, 2**31)  # fmt: skip
    layers: Any = random.choice(
        (
            range(3),
            [0, 1, 2],
            (0, 1, 2),
            [0, 2],
            [5],
            [],
            "012",
            None,
            3,
            [0, 0, 1],
            [2, 1, 0],
            ["a"],
            [0.0, 1.0, 2.0],
            np.arange(3),
            torch.arange(3),
            [True, False],
            [-1, 0, 1],
            [0, 1, 10**400],
            {0: 1, 1: 1, 2: 1},
            iter([0, 1, 2]),
            [None],
            [[0]],
            [np.int64(0), np.int64(1), np.int64(2)],
        )  # fmt: skip
    )
    given: Any = random.choice(
        (
            None,
            weights,
            weights.tolist(),
            weights * float("nan"),
            weights[:2],
            "w",
            weights.astype("c16"),
            {},
            weights.astype("O"),
            torch.ones(9, 3, 1).to(torch.float8_e4m3fn),
            weights.astype("bool"),
            [[["1"]]],
            torch.ones(9, 3, 1, dtype=torch.bfloat16),
            np.full((9, 3, 1), 1e308),
            object(),
        )  # fmt: skip
    )
    found = ActivationMap.from_routed_experts(
        experts if random.random() < 0.7 else routing,
        num_experts=random.choice(odd) if random.random() < 0.4 else 4,
        layers=layers if random.random() < 0.4 else range(3),
        num_tokens=random.choice(odd) if random.random() < 0.3 else None,
        weights=given if random.random() < 0.4 else None,
    )
    _use_map(found)


# Paths: whatever somebody types.


def _read_path(folder: Path) -> None:
    random = Random(int.from_bytes((folder / "seed").read_bytes()[:8], "big"))
    path = random.choice(
        (
            "~nosuchuser",
            "~nosuchuser/x",
            "x" * 5000,
            "/".join("x" * 300),
            "..",
            "../..",
            ".",
            "",
            "a\0b",
            "\ud800",
            "~",
            "/",
            "/dev/null",
            "/dev/zero",
            "/proc/self/mem",
            "/proc/1/environ",
            "a//b",
            "a/b/c",
            "con",
            "-",
            "--help",
            "*",
            "[",
            "\n",
            " ",
            "ünïcode",
            "\u202e",
            "x/..",
            str(folder),
            str(folder / "seed"),
            f"{folder}/../{folder.name}",
            "http://localhost:1/x",
            "org/model",
            "org/../model",
            "a" * 97 + "/b",
            "organism:",
            "organism:x",
            "organism:../x",
            "organism:refusal",
            "organism:refusal/..",
            "x:y:z:w",
            ":",
            "::",
            "json:train",
        )  # fmt: skip
    )
    more = {"subfolder": random.choice((None, "", "..", "x" * 5000, "a\0b", "~", "/etc", "\ud800"))}
    kind = random.choice((MoTEConfig, ActivationMap, ExpertRanking, FTRIResult, EvaluationReport))
    readers: tuple[Callable[[], Any], ...] = (
        lambda: kind.from_pretrained(path, **more),
        lambda: load_sae(path, **more),
        lambda: load_sae(path, "sparsify"),
        lambda: SAEModel.from_pretrained(path),
        lambda: SAEModel.from_pretrained(path, subfolder=more["subfolder"] or ""),
        lambda: load_organism(path),
        lambda: read_prompts(path, Organisms()),
        lambda: read_conversations(path),
        lambda: read_json(path),
        lambda: read_tensors(path, kind="k"),
    )
    # Where a relative path leads to nothing of anybody's.
    before = os.getcwd()
    os.chdir(folder)
    try:
        random.choice(readers)()
    finally:
        os.chdir(before)


def _make_seed(folder: Path) -> None:
    (folder / "seed").write_bytes(bytes(8))


def _new_seed(content: bytes, random: Random) -> tuple[bytes, str]:
    data = random.randbytes(8)
    return data, f"seed {data.hex()}"


READERS: tuple[Reader, ...] = (
    _one_file("mote_config", _config, _use_config, json_document),
    _one_file("tuned_values", _tuned, _use_tuned, safetensors_file),
    _one_file("activation_map", _map, _use_map, safetensors_file),
    _one_file("latent_expert_map", _links, _use_links, safetensors_file),
    _one_file("predicted_latent_expert_map", _predicted_links, _use_links, safetensors_file),
    _one_file("expert_ranking", _ranking, _use_ranking, safetensors_file),
    _one_file("optimized_ranking", _optimized, _use_optimized, safetensors_file),
    _one_file("expert_search", _search, _use_search, json_document),
    _one_file("counterfactual_routes", _routes, _use_routes, json_document),
    _one_file("ftri_result", _result, _use_result, safetensors_file),
    _one_file("evaluation_report", _report, _use_report, json_document),
    _one_file("steering_config", _steering, _use_steering, json_document),
    _one_file("sae_report", _sae_report, _use_sae_report, json_document),
    Reader(
        "run_folder", _make_run, _read_run, {"batch-000000.safetensors": safetensors_file, "run.json": json_document}
    ),
    Reader("json", _make_json, lambda folder: read_json(folder / "a.json"), {"a.json": json_document}),
    Reader("tensors", _make_tensors, _read_tensors, {"a.safetensors": safetensors_file}),
    _native("topk"),
    _native("jumprelu"),
    _native("feature_choice"),
    _native("gated", sharded=True),
    _foreign("saelens", "jumprelu", {"cfg.json": json_document, "sae_weights.safetensors": safetensors_file}),
    _foreign("sparsify", "topk", {"cfg.json": json_document, "sae.safetensors": safetensors_file}),
    _foreign("dictionary_learning", "batch_topk", {"config.json": json_document, "ae.pt": archive}),
    _foreign("dictionary_learning", "matryoshka", {"config.json": json_document, "ae.pt": archive}),
    Reader("sae/gemma_scope", _make_gemma_1, _read_sae, {"params.npz": archive}, share=0.6),
    Reader(
        "sae/gemma_scope_2",
        _make_gemma_2,
        _read_sae,
        {"config.json": json_document, "params.safetensors": safetensors_file},
        share=0.6,
    ),
    Reader(
        "organism",
        _make_organism,
        _read_organism,
        {
            "organism.json": json_document,
            "config.json": json_document,
            "tokenizer_config.json": json_document,
            "tokenizer.json": raw,
            "chat_template.jinja": text,
            "model.safetensors": safetensors_file,
        },
        share=0.03,
    ),
    _prompts("prompts.jsonl", "".join(json.dumps(line) + "\n" for line in _LINES), json_lines),
    _prompts("prompts.json", json.dumps(_LINES), json_document),
    _prompts("prompts.csv", 'prompt,class,answer\n"What, is it?",a,That\nWhy?,b,1\n', text),
    _prompts("prompts.tsv", "prompt\tclass\tanswer\nWhat\ta\tThat\n", text),
    _prompts("prompts.txt", "What is it?\nWhy?\n", text),
    Reader("conversations", _make_conversations, _read_conversations, {"question.jsonl": json_lines}),
    Reader("routed_experts", _make_seed, _read_routed, {"seed": _new_seed}, share=2.0),
    Reader("paths", _make_seed, _read_path, {"seed": _new_seed}),
    *FURTHER,
)
