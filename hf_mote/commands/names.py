"""Names that the command line shows in its help and checks first, without importing what they name.

Each is told again where it is put to use; a test holds the two together.
"""

from __future__ import annotations

__all__ = ["CONTROL_KINDS", "FORMATS", "MODES", "SCORES", "WRITTEN_FORMATS"]

CONTROL_KINDS = ("layer", "usage")
FORMATS = ("saelens", "sparsify", "dictionary_learning", "gemma_scope", "gemma_scope_2", "hf_mote")
MODES = ("drop", "reroute", "zero")
SCORES = ("mean_difference", "risk_difference", "log_odds", "npmi", "weight_difference")
WRITTEN_FORMATS = ("saelens", "sparsify", "dictionary_learning", "hf_mote")
