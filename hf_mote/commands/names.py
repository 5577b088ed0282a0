"""Names that the command line shows in its help and checks first, without importing the modules that define them.

Each list repeats that of the module that uses it; `tests/test_lazy.py` checks that the two are equal.
"""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "CONTROL_KINDS",
    "FORMATS",
    "LINK_METHODS",
    "MODES",
    "SAE_FIELDS",
    "SCORES",
    "WRITTEN_FORMATS",
]

_SPARSE = ("k", "scale_latents_by_decoder_norm", "aux_loss", "aux_k", "aux_coefficient")
_ZIPFIAN = (*_SPARSE, "threshold_decay", "zipf_exponent", "zipf_offset", "aux_zipf_share", "density_window")
# Architectures of sparse autoencoders, with the fields that their configs add to the common ones.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "batch_topk": (*_SPARSE, "threshold_decay"),
    "feature_choice": (*_ZIPFIAN, "budget", "min_budget"),
    "gated": ("l1_coefficient", "aux_coefficient"),
    "jumprelu": ("l0_coefficient", "l0_target", "bandwidth", "initial_threshold"),
    "matryoshka": (*_SPARSE, "threshold_decay", "group_sizes"),
    "mutual_choice": _ZIPFIAN,
    "relu": ("l1_coefficient",),
    "topk": _SPARSE,
}
# Common fields that the user of `hf-mote sae train` may set: it sets the others itself, or does not use them.
SAE_FIELDS = (
    "base_model_revision", "dead_after_tokens", "normalize_decoder", "reconstruction_loss", "subtract_decoder_bias",
)  # fmt: skip

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
