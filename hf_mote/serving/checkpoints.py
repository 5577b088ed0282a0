"""Writes checkpoints with what vLLM needs and transformers does not write."""

from __future__ import annotations

import copy
import os
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.routing.sites.discover import find_routers

__all__ = ["save_for_vllm"]


def save_for_vllm(
    model: PreTrainedModel, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write a model so that vLLM computes what transformers computes.

    Some of vLLM's models ignore tied embeddings, so both are written; and routers with a selection bias are recognised
    by two settings that published checkpoints have and transformers drops.

    Args:
        model (`PreTrainedModel`): The model; left as it is.
        folder (`str` or `os.PathLike`): The folder to write to.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Written beside it.
    """
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config()
    sites = find_routers(model)
    if sites[0].rule.selection_bias is not None and sites[0].rule.group_score is not None:
        text.topk_method = "noaux_tc"
        text.scoring_func = sites[0].rule.scoring
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    output = model.get_output_embeddings()
    if text.tie_word_embeddings and output is not None:
        text.tie_word_embeddings = False
        name = next(path for path, part in model.named_modules() if part is output)
        state[f"{name}.weight"] = output.weight.detach().clone()
    untied: Any = type(model)(config)
    untied.to(dtype=model.dtype)
    untied.load_state_dict(state)
    untied.generation_config = copy.deepcopy(model.generation_config)
    untied.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
