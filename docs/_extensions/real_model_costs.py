"""What the quick start on real models costs: `python docs/_extensions/real_model_costs.py` prints the tables.

Parameters are counted on models built from the published sizes, without memory for their values. Times are of the
memory traffic alone: in each decode step a GPU reads every weight that some token of the batch needs, and the keys and
values; the share of the experts that a batch of B tokens visits is 1 - (1 - top_k / experts)^B, were they visited
evenly. What a library gets of the bandwidth is assumed, not measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

__all__ = ["costs_markdown", "needs_markdown"]

GB = 1e9
IMAGING_RATIO = 1.06  # ftri beside plain generation, the worst that was measured: docs/costs.md
PROMPTS, HELD_OUT, UNRELATED, CONTROLS, PROMPT_TOKENS = 256, 64, 128, 40, 100


class Plan(NamedTuple):
    """A model with the way it is run.

    Attributes:
        name (`str`): Its repository.
        config (`PreTrainedConfig`): The published sizes.
        experts (`int`): Experts of a layer.
        top_k (`int`): Of these, chosen by each token.
        moe_layers (`int`): Layers that have experts.
        expert_bytes (`float`): Bytes of a parameter of the experts, scales included.
        other_bytes (`float`): Bytes of all other parameters.
        cache_bytes (`int`): Keys and values of a token, 16 bits each, all layers.
        gpus (`str`): What it runs on.
        bandwidth (`float`): Bytes per second of these together, as their maker gives it.
        share (`float`): Part of the bandwidth that is assumed to be reached.
        batch (`int`): Prompts at a time.
        new_tokens (`int`): Of each response.
    """

    name: str
    config: PreTrainedConfig
    experts: int
    top_k: int
    moe_layers: int
    expert_bytes: float
    other_bytes: float
    cache_bytes: int
    gpus: str
    bandwidth: float
    share: float
    batch: int
    new_tokens: int


def plans() -> list[Plan]:
    """Return the models of the page."""
    olmoe = OlmoeConfig(intermediate_size=1024)
    qwen = Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
    )
    gpt_oss = GptOssConfig(num_hidden_layers=24, num_local_experts=32)
    deepseek = DeepseekV3Config()
    one, eight = "one GPU of 80 GB, 3.35 TB/s", "eight GPUs of 141 GB, 4.8 TB/s each, vLLM"
    return [
        Plan("allenai/OLMoE-1B-7B-0924-Instruct", olmoe, 64, 8, 16, 2, 2, 131072, one, 3.35e12, 0.1, 32, 64),
        Plan("Qwen/Qwen3-30B-A3B-Instruct-2507", qwen, 128, 8, 48, 2, 2, 98304, one, 3.35e12, 0.1, 32, 64),
        Plan("openai/gpt-oss-20b", gpt_oss, 32, 4, 24, 4.25 / 8, 2, 49152, one, 3.35e12, 0.1, 32, 256),
        Plan("deepseek-ai/DeepSeek-R1", deepseek, 256, 8, 58, 1, 1, 70272, eight, 8 * 4.8e12, 0.25, 64, 1024),
    ]


def parameters(plan: Plan) -> tuple[float, float]:
    """Return how many parameters are the routed experts', and how many are not."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plan.config)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    return routed, sum(sizes.values()) - routed


def needs_markdown() -> str:
    """Return the table of what each model needs."""
    rows = [
        "| model | experts | parameters | weights | keys and values, one batch | a prompt's map | runs on |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for plan in plans():
        routed, other = parameters(plan)
        weights = routed * plan.expert_bytes + other * plan.other_bytes
        cache = plan.cache_bytes * plan.batch * (PROMPT_TOKENS + plan.new_tokens)
        experts = plan.experts * plan.moe_layers
        rows.append(
            f"| `{plan.name}` | {experts:,} | {(routed + other) / 1e9:.1f} B | {weights / GB:.0f} GB | "
            f"{cache / GB:.1f} GB | {experts * 16 / 1e3:.0f} kB | {plan.gpus} |"
        )
    return "\n".join(rows)


def costs_markdown() -> str:
    """Return the table of how long each step takes."""
    rows = [
        "| model | new tokens | batch | decode step | imaging | evaluation | both, at the full bandwidth |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for plan in plans():
        routed, other = parameters(plan)
        visited = 1 - (1 - plan.top_k / plan.experts) ** plan.batch
        traffic = routed * plan.expert_bytes * visited + other * plan.other_bytes
        traffic += plan.cache_bytes * plan.batch * (PROMPT_TOKENS + plan.new_tokens / 2)
        step = traffic / plan.bandwidth / plan.share
        imaging = IMAGING_RATIO * step * plan.new_tokens * math.ceil(PROMPTS / plan.batch)
        runs = (2 + CONTROLS) * math.ceil(HELD_OUT / plan.batch) + 2 * math.ceil(UNRELATED / plan.batch)
        evaluation = step * plan.new_tokens * runs
        rows.append(
            f"| `{plan.name}` | {plan.new_tokens:,} | {plan.batch} | {step * 1e3:.0f} ms | {_time(imaging)} | "
            f"{_time(evaluation)} | {_time((imaging + evaluation) * plan.share)} |"
        )
    return "\n".join(rows)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"


if __name__ == "__main__":
    print(needs_markdown(), costs_markdown(), sep="\n\n")  # noqa: T201
