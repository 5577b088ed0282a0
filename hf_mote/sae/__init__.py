"""Sparse autoencoders as transformers models.

Files in reading order:

- `configuration.py`: `SAEConfig`; `fields.py`: checks of its fields.
- `modeling.py`: `SAEModel`, with its tensors (`weights.py`), inputs (`inputs.py`), `output.py` and `losses.py`.
- `loading.py`, `saving.py`: loading that leaves nothing at random, saving that leaves no mixture of old and new.
- `register.py`: the architectures by name.
- `hookpoints.py`: where in a model activations are read. `step.py`: the optimizer step a batch is part of.
- `training/`: from a model and a text to a trained SAE.
- `kernels/`: selection and sparse products. `variants/`: one file per architecture. `convert/`: one per file format.

May import `hooks`, `passes`, `files`, `folders` and `hub`; never `routing`. A new architecture goes into `variants/`,
a new file format into `convert/`.
"""
