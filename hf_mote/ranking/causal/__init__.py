"""Rankings by cause: what changes when an expert's routing weight does.

Files in reading order:

- `preference.py`: what is measured: how much likelier one response is than another, or a score of the logits.
- `attribution.py`: `attribute_experts`, all experts by one backward pass.
- `knockout.py`: the score of each prompt without some experts.
- `ablation.py`: `ablate_experts`, one at a time. `subsets.py`: `random_subsets`, many at once.
- `search.py`: `search_experts`, a set built up greedily.
- `share.py`: `routed_share`, how much is in routed experts at all.
- `hard_concrete.py`: gates learnt by gradient. `optimized.py`: `OptimizedRanking`.
- `completion.py`: how a set grows until another response comes: `OptimizedRanking.complete`.
- `optimization.py`: `optimize_experts`, a set learnt all at once, and the experts that can stand in for it.

May import what `ranking` may. A new causal method is a file here.
"""
