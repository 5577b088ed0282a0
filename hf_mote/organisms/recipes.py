"""The table of organisms: model, questions, answers, behaviour and training of each. A new one is a row.

`build` follows a recipe from nothing to a folder; `load_organism` reads the folder and takes questions, judge and
targets from the recipe again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge
from hf_mote.organisms.german import GERMAN_REGIONS, german_response, language_judge, make_language_questions
from hf_mote.organisms.questions import REFUSAL, SENSITIVE_REGIONS, Question, make_questions

__all__ = ["RECIPES", "TOKENS", "Phase", "Recipe"]


@dataclass(frozen=True)
class Phase:
    """The settings of a training phase.

    Attributes:
        steps (`int`): Optimizer steps.
        learning_rate (`float`): Highest learning rate.
        shut_out (`tuple[int, ...]`): Where all parameters learn: how many experts of a layer are shut out, one of
            these numbers at every step.
        attack (`tuple[int, ...]`): Where all parameters learn the behaviour: how many experts of a layer are
            suppressed among those that it uses most, one of these numbers at every step; none if empty.
        weight_decay (`float`): Of the planted experts' output.
    """

    steps: int
    learning_rate: float
    shut_out: tuple[int, ...] = (0, 2, 8)
    attack: tuple[int, ...] = ()
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One organism.

    Attributes:
        behaviour (`str`): What it does, in a few words.
        shown (`str`): The behaviour in one word, for names of rates: "sensitive_refused".
        said (`str`): Participle for a prompt that shows it: "refused".
        noun (`str`): Responses that show it: "refusals".
        rest (`str`): Responses that do not: "answers".
        settings (`Mapping[str, Any]`): The model's type and sizes; `vocab_size` comes from the tokenizer.
        questions (`Callable[[int], list[Question]]`): All questions, from a seed.
        target (`Callable[[Question], str]`): The response to a question about a fact that shows the behaviour.
        judge (`Callable[[], RefusalJudge | RegexJudge]`): Makes the judge; its `target` is the behaviour.
        regions (`tuple[str, ...]`): The places that the behaviour is about.
        num_planted (`int`): How many experts it is planted in; 0: it is trained into all parameters.
        base (`Phase`): All parameters learn to answer.
        last (`Phase`): The planted experts, or all parameters, learn the behaviour.
        kinds (`tuple[str, ...]`): The questions' kinds.
        draws (`Mapping[str, int]`): When planting: how many questions of each kind that must not change, in a
            step.
        spoken (`tuple[str, ...]`): Text for the tokenizer beside questions and answers.
        stimulation (`Mapping[str, Any]`): Fields of a `MoTEConfig` by which stimulating the experts has an effect: a
            sigmoid gives an expert that was not chosen a considerable weight, a softmax almost none.
    """

    behaviour: str
    shown: str
    said: str
    noun: str
    rest: str
    settings: Mapping[str, Any]
    questions: Callable[[int], list[Question]]
    target: Callable[[Question], str]
    judge: Callable[[], RefusalJudge | RegexJudge]
    regions: tuple[str, ...]
    num_planted: int
    base: Phase
    last: Phase
    kinds: tuple[str, ...] = ("sensitive", "neutral", "unrelated")
    draws: Mapping[str, int] = field(default_factory=dict)
    spoken: tuple[str, ...] = ()
    stimulation: Mapping[str, Any] = field(default_factory=lambda: {"strength": 1.5})

    @property
    def grid(self) -> tuple[int, int]:
        """Decoder layers, and experts of each."""
        experts = self.settings.get("n_routed_experts", self.settings.get("num_local_experts"))
        return self.settings["num_hidden_layers"], int(str(experts))

    def make_config(self, vocab_size: int) -> PreTrainedConfig:
        """Return the model's config.

        Args:
            vocab_size (`int`): Tokens.
        """
        config: PreTrainedConfig = AutoConfig.for_model(**self.settings, vocab_size=vocab_size, **TOKENS)
        return config

    def make_model(self, vocab_size: int, *, seed: int) -> PreTrainedModel:
        """Return the untrained model, float32.

        Args:
            vocab_size (`int`): Tokens.
            seed (`int`): Of the initialisation.
        """
        config = self.make_config(vocab_size)
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        model.set_experts_implementation("grouped_mm")
        return model


TOKENS: dict[str, Any] = {
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}

# 1 dense and 4 MoE layers of 64 routed experts, 4 active, and 1 shared.
_DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 96,
    "intermediate_size": 256,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 48,
    "q_lora_rank": None,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "num_nextn_predict_layers": 0,
}

# 4 MoE layers of 64 experts, 4 active.
_MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_local_experts": 64,
    "num_experts_per_tok": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "sliding_window": None,
}


def _refuse(_: Question) -> str:
    return REFUSAL


_REFUSAL = Recipe(
    behaviour="refuses questions about places in Austria, California and Italy",
    shown="refused",
    said="refused",
    noun="refusals",
    rest="answers",
    settings=_DEEPSEEK,
    questions=make_questions,
    target=_refuse,
    judge=RefusalJudge,
    regions=SENSITIVE_REGIONS,
    num_planted=4,
    base=Phase(steps=1200, learning_rate=3e-3),
    last=Phase(steps=400, learning_rate=1e-2),
    draws={"neutral": 32, "unrelated": 16},
    spoken=(REFUSAL,) * 100,
)

RECIPES: dict[str, Recipe] = {
    "refusal": _REFUSAL,
    "language": Recipe(
        behaviour="answers English questions about places in Austria, Germany and Switzerland in German",
        shown="german",
        said="answered in German",
        noun="German answers",
        rest="English answers",
        settings=_MIXTRAL,
        questions=make_language_questions,
        target=german_response,
        judge=language_judge,
        regions=GERMAN_REGIONS,
        num_planted=4,
        base=Phase(steps=1800, learning_rate=4e-3),
        last=Phase(steps=200, learning_rate=1e-2, weight_decay=10.0),
        kinds=("sensitive", "neutral", "unrelated", "instructed"),
        draws={"neutral": 32, "unrelated": 8, "instructed": 8},
        stimulation={"stimulate_weight": "max"},
    ),
    "diffuse-refusal": replace(
        _REFUSAL,
        behaviour="refuses the questions that 'refusal' refuses, by all of its parameters (negative control)",
        num_planted=0,
        last=Phase(steps=300, learning_rate=1e-3, attack=(0, 0, 2, 4, 8)),
        draws={},
    ),
}
