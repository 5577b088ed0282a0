"""Selecting latents and multiplying with them, without dense latents.

Files in reading order:

- `sparse.py`: encode, select, decode, which the architectures call.
- `pattern.py`: which latents are active on which tokens.
- `selectors.py`: the interface of a rule that chooses latents. `by_token.py`, `by_latent.py`, `by_batch.py`: the
  rules.
- `blocks.py`: pre-activations block by block. `largest.py`: the largest entries of each row.
- `products.py`: the two products, by device. `torch_products.py`: plain and CPU. `triton_products.py`: CUDA.

May import nothing else of `sae`. A new way to choose latents is a file like `by_token.py`.
"""
