"""Names that the command line shows in its help and checks first, without importing what they name.

Each list is repeated from the module that uses it; `tests/test_lazy.py` checks that the two agree.
"""

from __future__ import annotations

__all__ = ["CONTROL_KINDS", "FORMATS", "LINK_METHODS", "MODES", "SCORES", "WRITTEN_FORMATS"]

CONTROL_KINDS = ("layer", "usage")
FORMATS = (
    "saelens",
    "sparsify",
    "dictionary_learning",
    "gemma_scope",
    "gemma_scope_2",
    "gemma_scope_2_layers",
    "qwen_scope",
    "circuit_tracer",
    "circuit_tracer_clt",
    "llama_scope",
    "lm_saes",
    "hook_z",
    "goodfire",
    "deepseek_r1",
    "openai",
    "opensae",
    "temporal",
    "hf_mote",
)
LINK_METHODS = ("weights", "intervention", "prediction")
MODES = ("drop", "reroute", "zero")
SCORES = ("mean_difference", "risk_difference", "log_odds", "npmi", "weight_difference")
WRITTEN_FORMATS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer", "hf_mote")
