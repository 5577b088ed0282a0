"""Causal rankings: the effects of changes of an expert's routing weight.

Files in reading order:

- `preference.py`: the measured score: how much likelier one response is than another, or a score of the logits.
- `attribution.py`: `attribute_experts`, all experts by one backward pass.
- `knockout.py`: the score of each prompt without some experts.
- `ablation.py`: `ablate_experts`, one at a time. `subsets.py`: `random_subsets`, many at once.
- `patching.py`: `patch_experts`, updates of a clean run put into a corrupted one; `patch_layers`.
- `search.py`: `search_experts`, a set built up greedily.
- `share.py`: `routed_share`, what is in routed experts at all. `counterfactual.py`: other routes of one token.
- `hard_concrete.py`: gates learnt by gradient. `optimized.py`: `OptimizedRanking`.
- `completion.py`: grows a set until the model gives another response: `OptimizedRanking.complete`.
- `optimization.py`: `optimize_experts`, a set learnt all at once, and the experts that can replace them.

May import what `ranking` may. A new causal method is a file here.
"""
