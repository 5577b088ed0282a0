"""Bases that several architectures of sparse autoencoders share.

Files in reading order:

- `selective.py`: architectures that select a budget of latents.
- `thresholded.py`: selection across a batch in training, thresholds at inference. `thresholds.py`: the thresholds.
- `zipfian.py`: the density of each latent, and its target. `budgets.py`: integer budgets.

May import `sae` and `sae/kernels`, not a variant.
"""
