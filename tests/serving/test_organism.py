"""The organism in vLLM: imaging through the engine finds what was planted, with the figures of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from serving.conftest import start, stop
from serving.models import of_routers

from hf_mote import MoTEConfig, Organism, ftri, load_organism
from hf_mote.errors import ConfigError, ModelMismatchError, UnknownNameError, UnsupportedError
from hf_mote.serving.checkpoints import save_for_vllm
from hf_mote.serving.engine import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


class Served:
    def __init__(self, folder: Path) -> None:
        self.organism: Organism = load_organism("refusal")
        save_for_vllm(self.organism.model, folder, self.organism.tokenizer)
        self.llm = start(folder, {"record": 16, "max_profiles": 2}, max_model_len=128)
        self.engine = VLLMEngine(self.llm)
        train = self.organism.prompts["train"]
        self.prompts = train["sensitive"][:32] + train["neutral"][:32]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    one = Served(tmp_path_factory.mktemp("organism"))
    yield one
    del one.llm, one.engine
    stop()


def test_ftri_through_the_engine_ranks_as_transformers_does(served: Served) -> None:
    organism = served.organism
    options: dict[str, Any] = {"max_new_tokens": 16, "progress": False}
    mine = ftri(served.engine, organism.tokenizer, served.prompts, organism.judge, **options)
    theirs = ftri(organism.model, organism.tokenizer, served.prompts, organism.judge, **options)
    assert mine.responses == theirs.responses
    assert mine.classes == theirs.classes
    assert mine.fingerprint == of_routers(theirs.fingerprint)
    assert torch.equal(mine.counts, theirs.counts)
    assert torch.equal(mine.num_tokens, theirs.num_tokens)
    torch.testing.assert_close(mine.weights, theirs.weights, atol=2e-5, rtol=1e-5)
    one, other = (result.rank("refusal", resamples=99) for result in (mine, theirs))
    assert one.top(4) == other.top(4)
    assert set(one.top(4)) == set(organism.planted)
    config = one.to_config(suppress=4)
    config.check(organism.model)


@pytest.mark.parametrize("scope", ["generation", "all"])
def test_ftri_through_the_engine_counts_the_tokens_of_a_scope(served: Served, scope: str) -> None:
    organism = served.organism
    options: dict[str, Any] = {"max_new_tokens": 12, "progress": False, "scope": scope}
    mine = ftri(served.engine, organism.tokenizer, served.prompts[28:36], organism.judge, **options)
    theirs = ftri(organism.model, organism.tokenizer, served.prompts[28:36], organism.judge, **options)
    assert torch.equal(mine.counts, theirs.counts)
    assert torch.equal(mine.num_tokens, theirs.num_tokens)


def test_ftri_through_the_engine_refuses_what_it_cannot_tell(served: Served, tmp_path: Path) -> None:
    organism = served.organism
    for options, error in (
        ({"scope": "user"}, UnsupportedError),
        ({"run_folder": tmp_path}, UnsupportedError),
        ({"generate_kwargs": {"repetition_penalty": 1.1}}, ConfigError),
        ({"batch_size": 17}, UnsupportedError),  # more recordings than the engine has room for
    ):
        with pytest.raises(error):
            ftri(served.engine, organism.tokenizer, served.prompts, organism.judge, progress=False, **options)
    assert (
        len(ftri(served.engine, organism.tokenizer, served.prompts[:2], organism.judge, progress=False).classes) == 2
    )


def test_engine_profiles_are_loaded_replaced_and_forgotten_at_run_time(served: Served) -> None:
    planted = [list(pair) for pair in served.organism.planted]
    model, engine = served.organism.model, served.engine
    ban = MoTEConfig.for_model(model, suppress=planted)
    engine.load("one", ban)
    engine.load("two", ban)  # the same under another name takes no room
    engine.load("two", MoTEConfig.for_model(model, stimulate=planted))
    assert set(engine.profiles) == {"one", "two"}
    with pytest.raises(UnsupportedError, match="as many profiles as it may"):
        engine.load("three", MoTEConfig(suppress=[[1, 2]]))
    engine.unload("two")
    engine.load("three", MoTEConfig(suppress=[[1, 2]]))
    engine.unload("three")
    with pytest.raises(UnknownNameError):
        engine.unload("three")
    with pytest.raises(UnsupportedError, match="does not exist"):
        engine.load("three", MoTEConfig(suppress=[[1, 999]]))
    engine.unload("one")


def test_engine_without_settings_refuses_profiles_and_serves(tmp_path: Path) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    organism = load_organism("refusal")
    save_for_vllm(organism.model, tmp_path, organism.tokenizer)
    llm = start(tmp_path, None, max_model_len=128)
    prompt = {"prompt_token_ids": [5, 6, 7]}
    with pytest.raises(VLLMValidationError, match="serves no profiles"):
        llm.generate(prompt, SamplingParams(extra_args={"mote": "ban"}), use_tqdm=False)
    assert llm.generate(prompt, SamplingParams(max_tokens=3, detokenize=False), use_tqdm=False)
    with pytest.raises(UnsupportedError, match="serves no profiles"):
        VLLMEngine(llm)
    del llm
    stop()


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"enable_expert_parallel": True}, UnsupportedError, "expert parallelism"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, UnsupportedError, "speculative"),
        (
            {"settings": {"profiles": {"wrong": {"schema_version": 1, "suppress": [[0, 1]]}}}},
            ModelMismatchError,
            "layer 0",
        ),
        ({"settings": {"profile": {}}}, UnknownNameError, "Did you mean 'profiles'"),
        ({"settings": {"modes": ["dropp"]}}, UnknownNameError, "Did you mean 'drop'"),
    ],
)
def test_engine_that_cannot_hold_its_word_does_not_start(
    tmp_path: Path, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    organism = load_organism("refusal")
    save_for_vllm(organism.model, tmp_path, organism.tokenizer)
    given = dict(more)
    with pytest.raises(error, match=words):
        start(tmp_path, given.pop("settings", {}), max_model_len=128, **given)
    stop()
