"""Sparse autoencoders as transformers models, and their use in a model.

Files in reading order:

- `configuration.py`: `SAEConfig`; `fields.py`: checks of its fields. `loading.py`, `saving.py`: strict loading, and
  saving whole or not at all. `sharing.py`: pushing to the Hub with a card.
- `modeling.py`: `SAEModel`, with its tensors (`weights.py`), inputs (`inputs.py`), `output.py` and `losses.py`.
- `normalization.py`: normalised input. `step.py`: the optimizer step of a batch. `register.py`:
  the architectures by name; `announced.py`: known to `AutoConfig` before they are imported.
- `kernels/`: sparse products. `variants/`: architectures. `convert/`: file formats. `training/`: from text to an SAE.
- `hookpoints.py`, `tapped.py`: places in a model, activations there. `latent_use.py`: how often latents are active.
- `edits.py`, `steering.py`, `steer.py`: changed latents. `intervene.py`: splicing. `kept.py`: kept results.
- `left_out.py`: tokens to leave out. `spliced.py`, `metrics.py`, `metric_sums.py`, `report.py`, `pictures.py`:
  evaluation. `activity.py`, `top_tokens.py`, `neuronpedia.py`: what single latents stand for.

May import `hooks`, `passes`, `runs`, `files`, `documents`, `folders`, `sharing`, `hub`, `plots`; never `routing`. A
new architecture goes into `variants/`, a new file format into `convert/`.
"""
