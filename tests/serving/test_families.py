"""In every family and mode vLLM under a profile says what transformers says under `apply_mote`; mixed in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from serving.conftest import start, stop
from serving.models import FAMILIES, greedy, profiles_for, save_tiny

from hf_mote import apply_mote, record_routing

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

LENGTH = 20
PROMPTS = [
    torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (4, 9, 17, 33, 40)
]


class Served:
    """A family's engine and what transformers says, under every profile."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self.model = save_tiny(family, folder)
        self.profiles = profiles_for(self.model)
        self.wanted: dict[str | None, list[tuple[list[int], list[float]]]] = {
            None: [greedy(self.model, prompt, LENGTH) for prompt in PROMPTS]
        }
        for name, config in self.profiles.items():
            with apply_mote(self.model, config):
                self.wanted[name] = [greedy(self.model, prompt, LENGTH) for prompt in PROMPTS]
        self.plain = said(start(folder, None), [None] * len(PROMPTS), PROMPTS)
        stop()
        settings = {"profiles": {name: config.to_dict() for name, config in self.profiles.items()}, "record": 8}
        self.llm = start(folder, settings)


def said(llm: Any, names: list[str | None], prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=LENGTH,
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
            extra_args=None if name is None else {"mote": name},
        )
        for name in names
    ]
    found = []
    for answer in llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False):
        tokens = list(answer.outputs[0].token_ids)
        logs = [step[token].logprob for step, token in zip(answer.outputs[0].logprobs, tokens, strict=True)]
        found.append((tokens, logs))
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    one = Served(request.param, tmp_path_factory.mktemp(request.param))
    yield one
    del one.llm
    stop()


def agree(found: list[tuple[list[int], list[float]]], wanted: list[tuple[list[int], list[float]]]) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    for (_, mine), (_, theirs) in zip(found, wanted, strict=True):
        assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 1e-4


def test_no_profile_is_the_plain_engine_bit_for_bit(served: Served) -> None:
    agree(served.plain, served.wanted[None])
    assert said(served.llm, [None] * len(PROMPTS), PROMPTS) == served.plain


def test_each_profile_alone_says_what_transformers_says(served: Served) -> None:
    distinct = {tuple(map(tuple, (tokens for tokens, _ in answers))) for answers in served.wanted.values()}
    assert len(distinct) == len(served.wanted), "profiles that change nothing would prove nothing"
    for name in served.profiles:
        agree(said(served.llm, [name] * len(PROMPTS), PROMPTS), served.wanted[name])


def test_all_profiles_in_one_batch_say_what_transformers_says(served: Served) -> None:
    names = [name for name in served.wanted for _ in PROMPTS]
    agree(
        said(served.llm, names, PROMPTS * len(served.wanted)),
        [one for name in names[:: len(PROMPTS)] for one in served.wanted[name]],
    )


def test_prefix_cache_is_never_shared_between_profiles(served: Served) -> None:
    # 40 tokens fill a block of the cache, which the second round of one name reads, and no other name.
    for name in (None, "drop", None, "reroute", "drop"):
        agree(said(served.llm, [name], PROMPTS[-1:]), served.wanted[name][-1:])


def test_recorded_routing_is_that_of_record_routing(served: Served) -> None:
    from hf_mote.serving.engine import VLLMEngine

    engine = VLLMEngine(served.llm)
    engine._ends = []  # as `greedy` has it
    for name in (None, "drop", "reroute", "number", "in-generation"):
        batch = engine.image(PROMPTS, phase="all", max_new_tokens=LENGTH, profile=name)
        assert batch.tokens == [tokens for tokens, _ in served.wanted[name]]
        for place, prompt in enumerate(PROMPTS):
            text = torch.tensor([prompt])
            handle = apply_mote(served.model, served.profiles[name]) if name is not None else None
            with torch.no_grad(), record_routing(served.model, eos_token_id=[]) as record:
                served.model.generate(text, max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0)
            if handle is not None:
                handle.remove()
            (mine,) = record.maps()
            assert batch.num_tokens[place] == mine.num_tokens == len(prompt) + LENGTH - 1
            assert torch.equal(batch.counts[place], mine.counts)
            torch.testing.assert_close(batch.weights[place], mine.weights, atol=2e-5, rtol=1e-5)
