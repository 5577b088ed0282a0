"""Activation maps: how many tokens each (layer, expert) took, and with which routing weight.

The result of recording. Files in reading order:

- `activation_map.py`: `ActivationMap`, with its arithmetic, saving and loading.
- `storage.py`: where the maps of very many prompts are held.
- `grid.py`: the (layer, expert) grid that maps and rankings share: checks, order, look-up.
- `engines.py`: routing that vLLM or SGLang recorded, counted as this package counts.

May import `files`, `hub`, `sharing`, `printing` and `plots`. The routing records of another engine are read in
`engines.py`.
"""
