"""Sparse autoencoders as transformers models, and what is done with them in a model.

Files in reading order:

- `configuration.py`: `SAEConfig`; `fields.py`: checks of its fields. `loading.py`: nothing is left at random.
  `saving.py`: no mixture of old and new is left. `sharing.py`: pushed to the Hub with its card.
- `modeling.py`: `SAEModel`, with its tensors (`weights.py`), inputs (`inputs.py`), `output.py` and `losses.py`.
- `normalization.py`: what an SAE from elsewhere does to each token before it encodes it.
- `step.py`: the optimizer step that a training batch is a part of. `register.py`: the architectures by name;
  `announced.py`: known to `AutoConfig` before they are imported.
- `kernels/`: selection and sparse products. `variants/`: one file per architecture. `convert/`: one per file format.
- `training/`: from a model and a text to an SAE.
- `hookpoints.py`: where in a model. `edits.py`: what is done to latents. `intervene.py`: `splice_sae`, `steer`.
- `steering.py`: `SteeringConfig`. `metrics.py`: `evaluate_sae`, and its `report.py`. `top_tokens.py`: one latent.

May import `hooks`, `passes`, `files`, `folders`, `sharing` and `hub`; never `routing`. A new architecture goes into
`variants/`, a new file format into `convert/`.
"""
