"""What several architectures of sparse autoencoders share.

Files in reading order:

- `selective.py`: architectures that select a budget of latents.
- `thresholded.py`: selection across a batch in training, thresholds at inference. `thresholds.py`: the thresholds.
- `zipfian.py`: how dense each latent is, and how dense it should be. `budgets.py`: integer budgets.

May import `sae` and `sae/kernels`, not a variant.
"""
