"""What profiles cost in vLLM: engines in one process, in alternating rounds, on experts that are not tiny.

    python tests/benchmarks/bench_serving.py [ROUNDS [PROMPTS]]

Needs the environment that tests/serving/environment.py makes. Four engines of one random Mixtral (8 experts of width
1792, hidden size 512, 4 layers; float32) take turns: plain; with the plugin and ten profiles, no request under one;
every request under one of ten profiles; every request recorded. A round times each once, in an order that changes;
printed are the ratios to the plain engine of the same round, with the interval that holds their median at 95 %, and
what that says of the aim: it holds if all of the interval is above, it does not if all is below, else it is not
resolved. A profile also changes how many experts a step reads, which is most of the time of a small batch and no cost
of the plugin: their number per layer is printed too. More prompts read all experts under every profile.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.conftest import start
from transformers import MixtralConfig, MixtralForCausalLM

from hf_mote import MoTEConfig
from hf_mote.serving.profiles import ProfileTables

AIMS = {
    "ten profiles, none asked for": 0.99,
    "one profile for all": 0.95,
    "ten profiles, mixed": 0.95,
    "recorded": 0.95,
}
PROMPT_LENGTH, NEW_TOKENS, LAYERS, EXPERTS = 64, 32, 4, 8
SEEN = ("ten profiles, none asked for", "one profile for all", "ten profiles, mixed")  # none asked for: as plain


def profiles() -> dict[str, Any]:
    """Return ten profiles of all modes."""
    drawn = random.Random(0)
    made = {}
    for number in range(10):
        pairs = [[layer, expert] for layer in range(LAYERS) for expert in drawn.sample(range(EXPERTS), 2)]
        kinds: list[dict[str, Any]] = [
            {"suppress": pairs},
            {"suppress": pairs, "suppress_mode": "reroute"},
            {"suppress": pairs, "suppress_mode": "zero"},
            {"stimulate": pairs[::2]},
            {"bias": [[*pair, 1.0] for pair in pairs]},
        ]
        made[f"p{number}"] = MoTEConfig(**kinds[number % len(kinds)]).to_dict()
    return made


def main(rounds: int, prompts: int) -> None:
    """Print the ratios."""
    from vllm import SamplingParams

    config = MixtralConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        MixtralForCausalLM(config).save_pretrained(folder)
        plain = start(Path(folder), None)
        tuned = start(Path(folder), {"profiles": profiles()})
        recorded = start(Path(folder), {"record": prompts})
    from hf_mote.serving.engine import VLLMEngine

    recorder = VLLMEngine(recorded)
    names = list(profiles())
    generator = torch.Generator().manual_seed(1)
    counter = iter(range(10**9))

    def run(llm: Any, extras: list[dict[str, Any] | None]) -> float:
        texts = torch.randint(3, 512, (prompts, PROMPT_LENGTH), generator=generator).tolist()  # nothing is cached
        params = [
            SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, extra_args=extra)
            for extra in extras
        ]
        begun = time.perf_counter()
        llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
        return time.perf_counter() - begun

    def run_recorded() -> float:
        keys = [str(next(counter)) for _ in range(prompts)]
        begun = time.perf_counter()
        run(recorded, [{"mote_record": key} for key in keys])
        for key in keys:
            recorder.take(key)
        return time.perf_counter() - begun

    ways = {
        "plain": lambda: run(plain, [None] * prompts),
        "plain again": lambda: run(plain, [None] * prompts),
        "ten profiles, none asked for": lambda: run(tuned, [None] * prompts),
        "one profile for all": lambda: run(tuned, [{"mote": "p1"}] * prompts),
        "ten profiles, mixed": lambda: run(tuned, [{"mote": names[place % len(names)]} for place in range(prompts)]),
        "recorded": run_recorded,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for number in range(rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            taken = ways[name]()
            if number:  # the first round warms up
                seconds[name].append(taken)
    read = {name: _experts_read(ways[name], prompts) for name in ways if name in SEEN}
    sys.stdout.write(f"{rounds} rounds of {prompts} prompts of {PROMPT_LENGTH} tokens, {NEW_TOKENS} new tokens each\n")
    for name, experts in read.items():
        sys.stdout.write(f"{name:30} reads {experts:.2f} of {EXPERTS} experts per layer and step of decoding\n")
    for name, taken in seconds.items():
        aim = AIMS.get(name)
        ratios = sorted(mine / other for mine, other in zip(seconds["plain"], taken, strict=True))
        low, high = _interval(len(ratios))
        said = "" if aim is None else f"; >= {aim:g} {_said(ratios[low], ratios[high], aim)}"
        sys.stdout.write(
            f"{name:30} throughput x {ratios[len(ratios) // 2]:.3f} of plain "
            f"(95 % interval of the median {ratios[low]:.3f} to {ratios[high]:.3f}; "
            f"{sorted(taken)[len(taken) // 2]:.2f} s){said}\n"
        )


def _experts_read(run: Callable[[], float], prompts: int) -> float:
    """Return how many experts a layer reads in a step of decoding, on average."""
    usual, found = ProfileTables.route, []

    def route(self: ProfileTables, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weights, indices = usual(self, *given)
        if len(indices) <= prompts:
            found.append(len(indices.unique()))
        return weights, indices

    ProfileTables.route = route  # type: ignore[method-assign]
    try:
        run()
    finally:
        ProfileTables.route = usual  # type: ignore[method-assign]
    return sum(found) / len(found)


def _said(low: float, high: float, aim: float) -> str:
    return "holds" if low >= aim else "does not hold" if high < aim else "is not resolved"


def _interval(number: int) -> tuple[int, int]:
    """Places in sorted values between which the median lies with 95 %."""
    half = 0.98 * number**0.5
    return max(int(number / 2 - half), 0), min(int(number / 2 + half), number - 1)


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], *("30", "10")[len(sys.argv) - 1 :]]))
