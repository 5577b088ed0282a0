"""A baked checkpoint in plain vLLM says what the live profile says in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from serving.conftest import start, stop
from serving.models import greedy, save_tiny
from serving.test_families import LENGTH, PROMPTS, said

from hf_mote import MoTEConfig, apply_mote, bake_mote, find_routers
from hf_mote.serving.checkpoints import save_for_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3_moe", {"suppress_mode": "zero"}),
        ("deepseek_v3", {"suppress_mode": "reroute"}),
        ("gpt_oss", {"suppress_mode": "reroute"}),
        ("mixtral", {"suppress_mode": "reroute"}),
    ],
    ids=str,
)
def test_baked_checkpoint_in_plain_vllm_is_the_live_profile(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = save_tiny(family, tmp_path / "model")
    # Of gpt-oss two, as its kernel wants an even number; of Mixtral as many in each layer.
    experts = (1, 5)
    suppress = [[site.layer, expert] for site in find_routers(model) for expert in experts]
    config = MoTEConfig.for_model(model, suppress=suppress, **fields)
    baked = bake_mote(model, config)
    baked.save_pretrained(tmp_path / "baked")
    with apply_mote(model, config):
        wanted = [greedy(model, prompt, LENGTH) for prompt in PROMPTS]
    before = [greedy(model, prompt, LENGTH) for prompt in PROMPTS]
    assert [tokens for tokens, _ in wanted] != [tokens for tokens, _ in before]
    llm = start(tmp_path / "baked", None)
    found = said(llm, [None] * len(PROMPTS), PROMPTS)
    del llm
    stop()
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]


def test_save_for_vllm_writes_what_vllm_reads(tmp_path: Path) -> None:
    model = save_tiny("deepseek_v3", tmp_path / "model")
    save_for_vllm(model, tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(again(torch.tensor([PROMPTS[0]])).logits, model(torch.tensor([PROMPTS[0]])).logits)
    assert (again.config.topk_method, again.config.scoring_func) == ("noaux_tc", "sigmoid")
