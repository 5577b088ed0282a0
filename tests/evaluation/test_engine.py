"""Evaluation through an engine: the report of the same model in transformers, and nothing left behind in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from nearly import different

from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote, find_routers, load_organism, record_routing
from hf_mote.errors import ConfigError, FileFormatError, UnsupportedError
from hf_mote.evaluation.engine import NO_DIVERGENCE, OTHER_NUMBERS, AnsweringEngine
from hf_mote.mote.patch import apply_mote
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.serving.recorded import RecordedBatch


class Answer(NamedTuple):
    tokens: list[int]
    log_probabilities: list[float]


class Engine:
    """An engine that is a model of transformers, one prompt at a time, with room for two profiles."""

    def __init__(self, organism: Any, most_recordings: int = 4) -> None:
        self.model = organism.model
        self.fingerprint = MoTEConfig.for_model(self.model).fingerprint
        self.base_model = "organism"
        self.most_recordings = most_recordings
        self.profiles: dict[str, MoTEConfig] = {}
        self.loaded: list[str] = []
        self.fails_after: int | None = None

    def routers(self) -> Any:
        return self.model, find_routers(self.model)

    def load(self, name: str, config: MoTEConfig) -> None:
        if config.scope in ("thinking", "answer"):
            raise UnsupportedError("profile", "where thinking begins is not known")
        if len(self.profiles) == 2:
            raise UnsupportedError("profile", "as many profiles as it may")
        self.profiles[name] = config
        self.loaded.append(name)

    def unload(self, name: str) -> None:
        if name not in self.profiles:
            raise UnsupportedError("profile", "unknown name")
        del self.profiles[name]

    def under(self, profile: str | None) -> Any:
        return nullcontext() if profile is None else apply_mote(self.model, self.profiles[profile])

    @torch.no_grad()
    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        profile: str | None,
        max_new_tokens: int,
        seed: int | None,
        sampling: Mapping[str, Any] | None,
        at_once: int,
    ) -> list[Answer]:
        if self.fails_after is not None and len(self.loaded) > self.fails_after:
            raise KeyboardInterrupt
        found = []
        with self.under(profile):
            for prompt in prompts:
                out = self.model.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
                tokens = out.sequences[0, len(prompt) :].tolist()
                logs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, tokens, strict=True)]
                found.append(Answer(tokens, logs))
        return found

    @torch.no_grad()
    def predict(self, texts: Sequence[Sequence[int]], *, profile: str | None, at_once: int) -> list[list[float]]:
        found = []
        with self.under(profile):
            for text in texts:
                logs = self.model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
                found.append(logs.gather(-1, torch.tensor(text[1:])[:, None])[:, 0].tolist())
        return found

    def image(
        self, prompts: Sequence[Sequence[int]], *, phase: str, max_new_tokens: int, **more: Any
    ) -> RecordedBatch:
        maps, tokens = [], []
        for prompt in prompts:
            with record_routing(self.model) as record:
                (answer,) = self.answer(
                    [prompt], profile=None, max_new_tokens=max_new_tokens, seed=None, sampling=None, at_once=1
                )
            tokens.append(answer.tokens)
            maps.append(record.total())
        return RecordedBatch.of(tokens, maps)


@pytest.fixture(scope="module")
def organism() -> Any:
    return load_organism("refusal")


def options(organism: Any) -> dict[str, Any]:
    held = organism.prompts["heldout"]
    return {
        "prompts": held["sensitive"][:5],
        "judge": organism.judge,
        "unrelated": held["neutral"][:4],
        "texts": held["sensitive"][7:9],
        "conversations": [held["sensitive"][5:7], held["neutral"][5:6]],
        "strengths": [0.5, 0.0],
        "num_controls": 3,
        "max_new_tokens": 12,
        "batch_size": 4,
        "progress": False,
    }


@pytest.mark.parametrize("kind", ["layer", "usage"])
def test_evaluate_through_an_engine_reports_what_transformers_does(organism: Any, kind: str) -> None:
    engine = Engine(organism)
    assert isinstance(engine, AnsweringEngine)
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    given = {**options(organism), "control_kind": kind}
    mine = evaluate_mote(engine, organism.tokenizer, config, **given)
    theirs = evaluate_mote(organism.model, organism.tokenizer, config, **given)
    assert mine.notes == [NO_DIVERGENCE]
    assert mine.side_effects is not None
    assert mine.side_effects.kl is None
    assert theirs.side_effects is not None
    assert theirs.side_effects.kl is not None
    effects = dataclasses.replace(mine.side_effects, kl=theirs.side_effects.kl)
    same = dataclasses.replace(mine, notes=[], elsewhere=dataclasses.replace(mine.elsewhere, side_effects=effects))
    assert different(same.to_dict(), theirs.to_dict()) == {}
    assert theirs.side_effects.kl > 0
    assert mine.after.rate < mine.before.rate
    # Every config under a name of its own, and none left.
    assert engine.profiles == {}
    assert len(set(engine.loaded)) == len(engine.loaded) > 5


def test_report_says_what_an_engine_did_not_tell_and_is_read_again(organism: Any, tmp_path: Any) -> None:
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    given = options(organism) | {"strengths": [], "conversations": [], "unrelated": []}
    report = evaluate_mote(Engine(organism), organism.tokenizer, config, **given)
    report.save_pretrained(tmp_path)
    again = EvaluationReport.from_pretrained(tmp_path)
    assert again == report
    # A divergence is not left out without a word.
    told = json.loads((tmp_path / report.file_name).read_text(encoding="utf-8"))
    (tmp_path / report.file_name).write_text(json.dumps({**told, "notes": []}), encoding="utf-8")
    with pytest.raises(FileFormatError, match="a note on why it is missing"):
        EvaluationReport.from_pretrained(tmp_path)
    page = str(evaluation_page(Evaluation("organism", report), provenance={}, files={}))
    assert "not measured" in page
    assert "KL on plain texts" in page
    assert "not measured" in repr(report)
    assert "nats of KL" not in repr(report)
    assert "not measured: KL on plain texts" in report._evidence().sections["Side effects"]


def test_evaluate_through_an_engine_that_fails_or_is_stopped_leaves_nothing_in_it(organism: Any) -> None:
    engine = Engine(organism)
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    engine.fails_after = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate_mote(engine, organism.tokenizer, config, **options(organism))
    assert len(engine.loaded) == 5
    assert engine.profiles == {}


@pytest.mark.parametrize(
    ("more", "fields", "error", "words"),
    [
        ({}, {"scope": "thinking", "thinking_tokens": (5, 6)}, UnsupportedError, "thinking"),
        ({"control_kind": "usage"}, {}, ConfigError, "records no routing"),
        ({"generate_kwargs": {"repetition_penalty": 1.1}}, {}, ConfigError, "repetition_penalty"),
    ],
)
def test_evaluate_refuses_what_an_engine_cannot_do_before_it_answers(
    organism: Any, more: dict[str, Any], fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    engine = Engine(organism, most_recordings=0)
    engine.fails_after = -1  # the first answer would be an error
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted, **fields)
    with pytest.raises(error, match=words):
        evaluate_mote(engine, organism.tokenizer, config, **options(organism) | more)
    assert engine.profiles == {}


def test_evaluate_says_that_an_engine_samples_other_answers(organism: Any) -> None:
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    given = options(organism) | {"texts": [], "conversations": [], "unrelated": [], "strengths": []}
    report = evaluate_mote(
        Engine(organism), organism.tokenizer, config, **given, generate_kwargs={"do_sample": True, "temperature": 0.7}
    )
    assert report.notes == [OTHER_NUMBERS]


def test_engine_has_no_run_folder(organism: Any, tmp_path: Path) -> None:
    config = MoTEConfig(suppress=[[1, 0]])
    with pytest.raises(UnsupportedError, match="run_folder: answers of a model behind an engine are not kept"):
        evaluate_mote(
            Engine(organism), organism.tokenizer, config, ["a"], organism.judge, num_controls=1,
            run_folder=tmp_path / "run", progress=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
