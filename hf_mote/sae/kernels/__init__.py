"""Selecting latents and multiplying with them, without dense latents.

Files in reading order:

- `sparse.py`: encode, select, decode: what the architectures call.
- `pattern.py`: which latents are active on which tokens.
- `selectors.py`: what a rule that chooses latents must offer. `by_token.py`, `by_latent.py`, `by_batch.py`: the rules.
- `blocks.py`: pre-activations block by block. `largest.py`: the largest entries of each row.
- `products.py`: the two products, by device. `torch_products.py`: plain and CPU. `triton_products.py`: CUDA.

May import nothing of `sae` beside itself. A new way to choose latents is a file like `by_token.py`.
"""
