"""A hundred wrong inputs, typed and in Python: each ends in one clear error, before a model has run.

What an error must say stands beside each input: the option or argument, or what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import run, said
from tiny_models import tiny_model, tiny_tokenizer

import hf_mote
from hf_mote import (
    ChoiceJudge,
    LanguageJudge,
    MoTEConfig,
    RefusalJudge,
    RegexJudge,
    ServerJudge,
    TopKSAEConfig,
    TopKSAEModel,
    apply_mote,
    attribute_experts,
    evaluate_mote,
    export_sae,
    find_routers,
    ftri,
    load_organism,
    load_sae,
    register_sae,
)
from hf_mote.errors import HFMoTEError

AB = ["--target", "a", "--baseline", "b"]
FTRI = ["ftri", "MODEL", "PROMPTS", "--judge", "refusal"]
ATTRIBUTE = ["attribute", "MODEL", "PROMPTS", *AB]
ROUTES = ["routes", "MODEL", "--prompt", "a", *AB]
EVALUATE = ["evaluate", "MODEL", "CONFIG", "PROMPTS", "--judge", "refusal"]
SWEEP = ["sweep", "MODEL", "RANKING", "PROMPTS", "--judge", "refusal"]
TRAIN = ["sae", "train", "MODEL", "TEXT", "--output", "OUT"]
STEER = ["sae", "steer", "MODEL", "SAE", "--prompt", "a"]
AT = ["--hookpoint", "model.layers.0"]
TYPED: list[tuple[list[str], str]] = [
    (["fitr"], "Did you mean 'ftri'"),
    (["--loud"], "No such option"),
    (["ftri"], "Missing argument"),
    (["ftri", "MODEL"], "Missing argument"),
    ([*FTRI, "--supress", "3"], "No such option: --supress"),
    ([*FTRI, "--suppress", "0"], "Invalid value for '--suppress'"),
    ([*FTRI, "--suppress", "three"], "Invalid value for '--suppress'"),
    ([*FTRI, "--suppress", "999"], "--suppress: asks for more experts than there are (got 999, expected up to"),
    ([*FTRI, "--stimulate", "999"], "--stimulate: asks for more experts than there are"),
    ([*FTRI, "--top", "999"], "--top: asks for more experts than there are"),
    ([*FTRI, "--suppress", "1", "--stimulate", "1"], "--suppress, --stimulate: are both given"),
    ([*FTRI, "--mode", "drp"], "--mode: unknown name (got 'drp', expected one of drop, reroute, zero). Did you mean"),
    ([*FTRI, "--scope", "promt"], "--scope: unknown name"),
    ([*FTRI, "--scope", "first:0"], "--scope: unknown name"),
    ([*FTRI, "--scope", "thinking"], "--thinking-tokens: is missing"),
    ([*FTRI, "--scope", "thinking", "--thinking-tokens", "<think>"], "--thinking-tokens: must be two tokens"),
    ([*FTRI, "--scope", "thinking", "--thinking-tokens", "<think>,</think>"], "the tokenizer lacks"),
    ([*FTRI, "--score", "mean"], "--score: unknown name"),
    ([*FTRI, "--score", "npmi", "--normalize"], "--normalize"),
    ([*FTRI, "--confidence", "2"], "--confidence"),
    ([*FTRI, "--confidence", "nan"], "--confidence"),
    ([*FTRI, "--temperature", "0"], "--temperature: is out of range"),
    ([*FTRI, "--temperature", "nan"], "--temperature: is out of range"),
    ([*FTRI, "--top-p", "1.5"], "--top-p: is out of range"),
    ([*FTRI, "--template-arg", "thinking"], "--template-arg: must be a name and a value"),
    ([*FTRI, "--template-arg", "a=b"], "--template-arg a: must be valid JSON"),
    ([*FTRI, "--template-arg", 'a={"b": NaN}'], "--template-arg a: b: must be a finite number"),
    ([*FTRI, "--template-arg", "a=1", "--template-arg", "a=2"], "--template-arg: gives a name twice"),
    ([*FTRI, "--chat-template", "missing.jinja"], "--chat-template missing.jinja: cannot be read"),
    ([*FTRI, "--dtype", "int8"], "--dtype: unknown name"),
    ([*FTRI, "--device", "abacus"], "--device: there is no such device here"),
    ([*FTRI, "--batch-size", "0"], "Invalid value for '--batch-size'"),
    ([*FTRI, "--limit", "0"], "Invalid value for '--limit'"),
    ([*FTRI, "--repeats", "0"], "Invalid value for '--repeats'"),
    ([*FTRI, "--repeats", "2"], "--repeats"),
    ([*FTRI, "--run-folder", "FILE"], "is a file"),
    ([*FTRI, "--prompt-field", "text"], "has no field 'text'"),
    ([*FTRI, "--class-field", "kind"], "field"),
    ([*FTRI, "--pair-field", "pair"], "field"),
    (["ftri", "MODEL", "PROMPTS"], "--judge: is missing"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refsal"], "Did you mean 'refusal'"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refusal:xx"], "--judge refusal"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "regex:("], "--judge regex"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "regex:"], "--judge: needs a value after the colon"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "choice:A", "--target", "A"], "--judge choice"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "choice:AB"], "--target: is missing"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "language:en"], "--judge language"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "lm:Is it?"], "--judge-model: is needed"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "lm:Is it?", "--judge-model", "m", "--judge-url", "x"], "--judge-url"),
    ([*FTRI, "--judge-model", "m"], "--judge-model: is for the judge lm"),
    ([*FTRI, "--target", "refuse"], "Did you mean 'refusal'"),
    (["ftri", "MODEL", "EMPTY", "--judge", "refusal"], "holds no prompts"),
    (["ftri", "MODEL", "promts.jsonl", "--judge", "refusal"], "no such file"),
    (["ftri", "MODEL", "BROKEN", "--judge", "refusal"], "line 1: must be valid JSON"),
    (["ftri", "MODEL", "organism:refusal/trian", "--judge", "refusal"], "Did you mean 'train'"),
    (["ftri", "MODEL", "organism:refusl/train", "--judge", "refusal"], "Did you mean 'refusal'"),
    (["ftri", "organism:refusl", "PROMPTS", "--judge", "refusal"], "Did you mean 'refusal'"),
    (["ftri", "BARE", "PROMPTS", "--judge", "refusal"], "holds a model without its tokenizer"),
    (["ftri", "DAMAGED", "PROMPTS", "--judge", "refusal"], "its weights are damaged"),
    (["ftri", "SAE", "PROMPTS", "--judge", "refusal"], "must be a language model, not a sparse autoencoder"),
    (["ftri", "NOTHING", "PROMPTS", "--judge", "refusal"], "no config.json"),
    ([*FTRI, "--output", "FILE"], "is a file"),
    ([*FTRI, "--output", "FILE/below"], "--output"),
    ([*FTRI, "--output", "MODEL"], "holds something already"),
    (["attribute", "MODEL", "PROMPTS", "--baseline", "b"], "--target: is missing"),
    (["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", " "], "--baseline gives is empty"),
    (["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "a"], "--target and --baseline are the same"),
    ([*ATTRIBUTE, "--gain", "nan"], "--gain: must be a number"),
    ([*ATTRIBUTE, "--gain", "0"], "--gain: must be a number"),
    ([*ATTRIBUTE, "--method", "gradient"], "--method: unknown name"),
    ([*ATTRIBUTE, "--shortlist", "5"], "--shortlist: is for the methods ablation and patching"),
    ([*ATTRIBUTE, "--method", "ablation", "--shortlist", "999"], "--shortlist: asks for more experts than there are"),
    (["routes", "MODEL", *AB], "PROMPTS: is missing"),
    (["routes", "MODEL", "PROMPTS", "--prompt", "a", *AB], "PROMPTS: and --prompt are both given"),
    (["routes", "MODEL", "--prompt", "a", "--baseline", "b"], "--target: is missing. Give --target TEXT."),
    (["routes", "MODEL", "PROMPTS", "--target", "a"], "--baseline: is missing"),
    (["routes", "MODEL", "--prompt", " ", *AB], "--prompt, field 'prompt': must"),
    ([*ROUTES, "--layers", "9"], "--layers: unknown name (got 9"),
    ([*ROUTES, "--position", "99"], "--position: --prompt: prompt 1 has no such token"),
    ([*ROUTES, "--candidates", "0"], "Invalid value for '--candidates'"),
    ([*ROUTES, "--output", "FILE"], "is a file"),
    ([*EVALUATE, "--strengths", "0.5,nan"], "--strengths: must hold finite numbers"),
    ([*EVALUATE, "--strengths", ""], "--strengths: must be a list of numbers"),
    ([*EVALUATE, "--control-kind", "layers"], "Did you mean 'layer'"),
    ([*EVALUATE, "--conversations", "missing.jsonl"], "cannot be read"),
    (["evaluate", "MODEL", "nowhere/config", "PROMPTS", "--judge", "refusal"], "nowhere/config"),
    (["evaluate", "MODEL", "CONFIG", "CLASSED", "--judge", "field", "--target", "a"], "no rate can change"),
    ([*SWEEP, "--experts", "1,x"], "--experts: must be a list of numbers"),
    ([*SWEEP, "--experts", "0"], "must be above 0"),
    ([*SWEEP, "--strengths", "inf"], "--strengths: must hold finite numbers"),
    (["sae", "convert", "SAE", "OUT", "--to", "saelense"], "Did you mean 'saelens'"),
    (["sae", "convert", "SAE", "SAE", "--to", "hf_mote"], "holds a sparse autoencoder already"),
    (
        ["sae", "convert", "MODEL", "OUT", "--to", "saelens"],
        "holds another model, where a sparse autoencoder is meant",
    ),
    (["sae", "convert", "NOTHING", "OUT", "--to", "saelens"], "holds no weights of a sparse autoencoder"),
    ([*TRAIN, "--settings", "SETTINGS"], "tokens: must be a valid integer (got 'many')"),
    ([*TRAIN, "--architecture", "topc"], "--architecture: unknown name (got 'topc'"),
    ([*TRAIN, "--architecture", "relu", "--k", "4"], "--k: relu has none"),
    ([*TRAIN, "--option", "l2_coefficient=1"], "--option: unknown name (got 'l2_coefficient'"),
    ([*TRAIN, "--exclude-positions", "last:1"], "--exclude-positions: must be a range (got 'last:1'"),
    ([*TRAIN, "--max-norm", "0"], "--max-norm: must be a number (got 0.0, expected above 0)"),
    ([*TRAIN, "--max-norm", "nan"], "--max-norm: must be a number"),
    (["sae", "adapt", "MODEL", "SAE", "TEXT", "--output", "OUT", "--max-norm", "-1"], "--max-norm: must be a number"),
    (["sae", "evaluate", "MODEL", "SAE", "TEXT", "--exclude-positions", "4"], "--exclude-positions: must be a range"),
    (["sae", "top-tokens", "MODEL", "SAE", "TEXT", "--max-norm", "inf"], "--max-norm: must be a number"),
    ([*TRAIN, "--hookpoint", "model.layerz.0"], "--hookpoint: unknown name (got 'model.layerz.0'"),
    (["sae", "train", "MODEL", "FILE", "--output", "OUT"], "is too short to hold some out"),
    (["sae", "evaluate", "MODEL", "SAE", "TEXT"], "--hookpoint: the SAE does not say where it belongs"),
    (["sae", "evaluate", "MODEL", "SAE", "TEXT", *AT, "--dtype", "int8"], "--dtype: unknown name"),
    (["sae", "top-tokens", "MODEL", "SAE", "TEXT", "--latent", "99", *AT], "--latent: the SAE has no such latent"),
    (["sae", "experts", "MODEL", "SAE", "--latent", "99", *AT], "--latent: the SAE has no such latent"),
    (["sae", "experts", "MODEL", "SAE", "--method", "intervention"], "TEXT: method intervention needs a text"),
    ([*STEER, "--edit", "99=+5", *AT], "--edit: the SAE has no such latent"),
    ([*STEER, "--edit", "1=+5", "--edit", "1=x2"], "--edit: gives a latent twice"),
    ([*STEER, "--edit", "1=+5", "--scope", "thinking"], "--scope: unknown name"),
    ([*STEER, "--edit", "1=+5", "--strength", "nan"], "--strength: must be a number"),
    ([*STEER, "--edit", "1=+5", "--output", "FILE"], "is a file"),
    (["bake", "MODEL", "CONFIG", "MODEL"], "must be a new or an empty folder"),
    (["demo", "--organism", "refusl"], "Did you mean 'refusal'"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_places: dict[str, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (folder / "classed.jsonl").write_text('{"prompt": "a", "class": "a"}\n{"prompt": "b", "class": "b"}\n')
    (folder / "empty.jsonl").write_text("\n")
    (folder / "broken.jsonl").write_text('{"prompt": \n')
    (folder / "file").write_text("mine")
    (folder / "text.jsonl").write_text('{"text": "a few words"}\n' * 20)
    (folder / "settings.yaml").write_text("tokens: many\n")
    (folder / "nothing").mkdir()
    MoTEConfig(suppress=[[0, 1]]).save_pretrained(folder / "config")
    return tiny_places | {
        "PROMPTS": folder / "prompts.jsonl",
        "CLASSED": folder / "classed.jsonl",
        "EMPTY": folder / "empty.jsonl",
        "BROKEN": folder / "broken.jsonl",
        "FILE": folder / "file",
        "TEXT": folder / "text.jsonl",
        "SETTINGS": folder / "settings.yaml",
        "NOTHING": folder / "nothing",
        "CONFIG": folder / "config",
        "RANKING": folder / "config",
        "OUT": folder / "new",
    }


@pytest.fixture(scope="module")
def tiny_places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model as it should be, one without a tokenizer, one whose weights are damaged, and an SAE."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("model", "bare", "damaged"):
        tiny_model("mixtral").save_pretrained(folder / name)
        if name != "bare":
            tiny_tokenizer().save_pretrained(folder / name)
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    TopKSAEModel(TopKSAEConfig(hidden_size=4, num_latents=8, k=2)).save_pretrained(folder / "sae")
    return {name.upper(): folder / name for name in ("model", "bare", "damaged", "sae")}


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test in which a model runs."""

    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(tiny_model("mixtral")), "forward", forward)


def files_below(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(("words", "message"), TYPED, ids=[" ".join(words) for words, _ in TYPED])
def test_typed_wrong_input_is_one_error_before_any_work(
    words: list[str], message: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    before = files_below(places["FILE"].parent) | files_below(places["MODEL"].parent)
    names = {**places, "FILE/below": places["FILE"] / "below"}
    result = run(*(names.get(word, word) for word in words))
    assert result.exit_code in (1, 2), result.output
    text = said(result)
    assert message in text
    assert "Traceback" not in text
    error = [line for line in result.output.splitlines() if message.split(" (")[0] in " ".join(line.split())]
    assert len(error) == 1, result.output
    assert list(tmp_path.iterdir()) == []
    assert files_below(places["FILE"].parent) | files_below(places["MODEL"].parent) == before


class Subjects:
    """What the Python cases are tried on."""

    def __init__(self, folder: Path) -> None:
        self.model = tiny_model("mixtral")
        self.tokenizer = tiny_tokenizer()
        self.sae = TopKSAEModel(TopKSAEConfig(hidden_size=4, num_latents=8, k=2)).eval()
        self.folder = folder
        self.judge = RegexJudge({"a": "a"})


def asked(subject: Subjects, **options: Any) -> object:
    return ftri(subject.model, subject.tokenizer, options.pop("prompts", ["a", "b"]), subject.judge, **options)


def attributed(subject: Subjects, response: Any = "a", baseline: Any = "b", **options: Any) -> object:
    return attribute_experts(subject.model, subject.tokenizer, ["a"], response, baseline, **options)


def measured(subject: Subjects, **options: Any) -> object:
    config = options.pop("config", MoTEConfig(suppress=[[0, 1]]))
    return evaluate_mote(subject.model, subject.tokenizer, config, ["a"], subject.judge, **options)


WRITTEN: list[tuple[str, Callable[[Subjects], object], str]] = [
    ("no such expert", lambda s: MoTEConfig.for_model(s.model, suppress=[[0, 99]]), "99"),
    ("no such layer", lambda s: MoTEConfig.for_model(s.model, suppress=[[9, 0]]), "layer"),
    ("no such field", lambda s: MoTEConfig.for_model(s.model, supress=[[0, 1]]), "Did you mean 'suppress'"),
    ("no pairs", lambda s: MoTEConfig(suppress=[0, 1]), "MoTEConfig.suppress"),  # type: ignore[list-item]
    ("negative", lambda s: MoTEConfig(suppress=[[0, -1]]), "MoTEConfig.suppress"),
    ("repeated", lambda s: MoTEConfig(suppress=[[0, 1], [0, 1]]), "MoTEConfig.suppress"),
    ("both ways", lambda s: MoTEConfig(suppress=[[0, 1]], stimulate=[[0, 1]]), "MoTEConfig"),
    ("no such mode", lambda s: MoTEConfig(suppress_mode="drp"), "suppress_mode"),  # type: ignore[arg-type]
    ("no such scope", lambda s: MoTEConfig(scope="promt"), "scope"),  # type: ignore[arg-type]
    ("strength NaN", lambda s: MoTEConfig(strength=math.nan), "MoTEConfig.strength"),
    ("bias NaN", lambda s: MoTEConfig(bias=[[0, 1, math.nan]]), "MoTEConfig.bias"),
    ("no thinking tokens", lambda s: MoTEConfig(scope="thinking"), "thinking_tokens"),
    ("no such config", lambda s: apply_mote(s.model, "nowhere/config"), "nowhere/config"),
    ("no config", lambda s: apply_mote(s.model, 3), "apply_mote.config: not a config"),  # type: ignore[arg-type]
    ("no MoE", lambda s: find_routers(torch.nn.Linear(2, 2)), "Linear"),
    ("no prompts", lambda s: asked(s, prompts=[]), "must hold prompts"),
    ("one string", lambda s: asked(s, prompts="a"), "not a list of prompts"),
    ("an empty prompt", lambda s: asked(s, prompts=["a", ""]), "[1]"),
    ("no prompt", lambda s: asked(s, prompts=["a", 3]), "[1]"),
    ("scope", lambda s: asked(s, scope="promt"), "ftri.scope"),
    ("repeats", lambda s: asked(s, repeats=0), "ftri.repeats"),
    ("batch size", lambda s: asked(s, batch_size=0), "batch_size"),
    ("length", lambda s: asked(s, max_new_tokens=-1), "max_new_tokens"),
    ("no template argument", lambda s: asked(s, chat_template_kwargs={"nosuch": 1}), "nosuch"),
    ("gain NaN", lambda s: attributed(s, gain=math.nan), "attribute_experts.gain"),
    ("gain above 1", lambda s: attributed(s, gain=2), "attribute_experts.gain"),
    ("the same response", lambda s: attributed(s, "a", "a"), "response"),
    ("an empty response", lambda s: attributed(s, "", "b"), "response"),
    ("another number", lambda s: attributed(s, ["a", "a"], "b"), "response"),
    ("controls", lambda s: measured(s, num_controls=-1), "num_controls"),
    ("kind of controls", lambda s: measured(s, control_kind="layers"), "Did you mean 'layer'"),
    ("strengths NaN", lambda s: measured(s, strengths=[math.nan]), "strength"),
    ("regex", lambda s: RegexJudge({"a": "("}), "RegexJudge.patterns['a']"),
    ("choice", lambda s: ChoiceJudge("A"), "ChoiceJudge.options"),
    ("language", lambda s: LanguageJudge(["en"]), "LanguageJudge.languages"),
    ("refusal", lambda s: RefusalJudge(["xx"]), "RefusalJudge.languages"),
    ("server", lambda s: ServerJudge("localhost", "m", "Is it?"), "ServerJudge.base_url"),
    ("organism", lambda s: load_organism("refusl"), "Did you mean 'refusal'"),
    ("SAE width", lambda s: s.sae.encode(torch.zeros(2, 5)), "5"),
    ("SAE k", lambda s: TopKSAEConfig(hidden_size=4, num_latents=8, k=0), "k"),
    ("SAE field", lambda s: TopKSAEConfig(hidden_size=4, num_latent=8), "Did you mean 'num_latents'"),
    ("SAE format", lambda s: export_sae(s.sae, s.folder / "new", "saelense"), "Did you mean 'saelens'"),
    ("SAE folder", lambda s: load_sae(s.folder), "holds no weights"),
    ("no SAE", lambda s: register_sae(torch.nn.Linear), "must be an architecture"),  # type: ignore[type-var]
]


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(("call", "message"), [case[1:] for case in WRITTEN], ids=[case[0] for case in WRITTEN])
def test_wrong_input_in_python_is_one_error_before_any_work(
    call: Callable[[Subjects], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(HFMoTEError) as caught:
        call(Subjects(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_there_are_a_hundred_of_them() -> None:
    typed = {json.dumps(words) for words, _ in TYPED}
    assert len(typed) == len(TYPED)
    assert len(TYPED) + len(WRITTEN) >= 100
    assert hf_mote.__all__


def test_ctrl_c_says_what_was_kept(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mote.ranking.imaging.pipeline.ftri", stopped)
    words = ["ftri", places["MODEL"], places["PROMPTS"], "--judge", "refusal", "--output", tmp_path / "out"]
    result = run(*words)
    assert result.exit_code == 130
    assert "Stopped. Nothing was written." in said(result)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_message(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/somewhere/big")

    monkeypatch.setattr("hf_mote.ranking.imaging.pipeline.ftri", full)
    words = ["ftri", places["MODEL"], places["PROMPTS"], "--judge", "refusal", "--output", tmp_path / "out"]
    result = run(*words)
    assert result.exit_code == 1
    assert "No space left on device" in said(result)
    assert "Nothing was written" in said(result)
    assert list(tmp_path.iterdir()) == []
