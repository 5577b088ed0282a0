"""Run folders of what reads a text with an SAE, or trains beside one: killed anywhere, the next run ends the same.

Part of the table of `kill.py`, and by the same rule; a state that is there must be that of a run nobody killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model, tiny_tokenizer
from writer import Writer

from hf_mote import TopKSAEConfig, TopKSAEModel, adapt_to_sae, evaluate_sae, link_latents
from hf_mote.files import read_json, write_json
from hf_mote.runs import checkpoints
from hf_mote.sae.activity import latent_activity
from hf_mote.sae.top_tokens import top_activations

__all__ = ["SAE_WRITERS"]

_TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] for i in range(9)]
_SAE = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=16, k=3, hookpoint="model.layers.0.output")).eval()
_READING = {"context_length": 12, "sequences_per_forward": 6}


def _measured(run: Path | None, state: int) -> Any:
    texts = _TEXTS[state:]
    return evaluate_sae(
        tiny_model("mixtral"), _SAE, texts, tiny_tokenizer(), seed=state, run_folder=run, **_READING
    ).to_dict()


def _active(run: Path | None, state: int) -> Any:
    texts = _TEXTS[state:]
    return top_activations(
        tiny_model("mixtral"), _SAE, texts, tiny_tokenizer(), [state, 5], run_folder=run, **_READING
    )


def _counted(run: Path | None, state: int) -> Any:
    texts = _TEXTS[state:]
    return latent_activity(tiny_model("mixtral"), _SAE, texts, tiny_tokenizer(), run_folder=run, **_READING)


def _linked(run: Path | None, state: int) -> Any:
    links = link_latents(
        tiny_model("mixtral"), _SAE, _TEXTS[:3], tiny_tokenizer(), method="intervention", latents=[state, 5],
        edit=float(state), run_folder=run, progress=False, **_READING,
    )  # fmt: skip
    return [links.values.tolist(), links.tokens.tolist()]


def _predicted(run: Path | None, state: int) -> Any:
    links = link_latents(
        tiny_model("mixtral"), _SAE, _TEXTS[state:], tiny_tokenizer(), method="prediction", run_folder=run,
        progress=False, **_READING,
    )  # fmt: skip
    return [links.values.tolist(), links.tokens.tolist()]


def _adapted(run: Path | None, state: int) -> Any:
    from peft import get_peft_model_state_dict

    # A checkpoint after each step.
    checkpoints.EVERY, checkpoints.SHARE = 0.0, 0
    with torch.random.fork_rng():
        adapted = adapt_to_sae(
            tiny_model("mixtral"), _SAE, _TEXTS, tokenizer=tiny_tokenizer(), max_tokens=144, batch_size=4,
            context_length=12, seed=state, run_folder=run,
        )  # fmt: skip
    return {name: tensor.tolist() for name, tensor in sorted(get_peft_model_state_dict(adapted).items())}


def _writer(name: str, make: Callable[[Path | None, int], Any]) -> Writer:
    def result(run: Path | None, state: int) -> Any:
        # As a file has it.
        return json.loads(json.dumps({"state": state, "result": make(run, state)}))

    whole = cache(partial(result, None))

    def write(folder: Path, state: int) -> None:
        write_json(folder / "result.json", result(folder / f"run-{state}", state))

    def read(folder: Path) -> int:
        if not (folder / "result.json").exists():
            return 0
        found = read_json(folder / "result.json")
        assert found == whole(int(found["state"]))
        return int(found["state"])

    return Writer(f"{name}, with run_folder", write, read, replaces=False)


SAE_WRITERS: tuple[Writer, ...] = (
    _writer("evaluate_sae", _measured),
    _writer("top_activations", _active),
    _writer("latent_activity", _counted),
    _writer("link_latents", _linked),
    _writer("link_latents by prediction", _predicted),
    _writer("adapt_to_sae", _adapted),
)
