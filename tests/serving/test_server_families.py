"""Over HTTP, in every family and mode, mixed as requests come: what transformers says under `apply_mote`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving.models import FAMILIES, greedy, profiles_for, save_tiny
from serving.servers import Process
from serving.test_families import LENGTH, PROMPTS, agree

from hf_mote import apply_mote, load_organism
from hf_mote.serving.client import ServerEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_profile_over_http_says_what_transformers_says(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = save_tiny(family, folder)
    load_organism("refusal").tokenizer.save_pretrained(folder)  # which a server wants; texts are none here
    profiles = profiles_for(model)
    wanted = {None: [greedy(model, prompt, LENGTH) for prompt in PROMPTS]}
    for name, config in profiles.items():
        config.save_pretrained(tmp_path / name)
        with apply_mote(model, config):
            wanted[name] = [greedy(model, prompt, LENGTH) for prompt in PROMPTS]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "96"]
    server = Process(str(folder), {name: tmp_path / name for name in profiles}, *options)
    try:
        engine = ServerEngine(server.url)
        how = {"max_new_tokens": LENGTH, "sampling": {"ignore_eos": True}}
        with ThreadPoolExecutor(len(wanted)) as pool:
            found = list(pool.map(lambda name: engine.answer(PROMPTS, profile=name, **how), wanted))
    finally:
        server.stop()
    for answers, name in zip(found, wanted, strict=True):
        agree([(one.tokens, one.log_probabilities) for one in answers], wanted[name])
