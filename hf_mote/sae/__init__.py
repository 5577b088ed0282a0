"""Sparse autoencoders as transformers models, and what is done with them in a model.

Files in reading order:

- `configuration.py`: `SAEConfig`; `fields.py`: checks of its fields. `loading.py`: nothing is left at random.
  `saving.py`: no mixture of old and new is left. `sharing.py`: pushed to the Hub with its card.
- `modeling.py`: `SAEModel`, with its tensors (`weights.py`), inputs (`inputs.py`), `output.py` and `losses.py`.
- `normalization.py`: what an SAE from elsewhere does to a token first. `step.py`: the step that a batch is a part of.
- `register.py`: the architectures by name; `announced.py`: known to `AutoConfig` before they are imported.
- `kernels/`: selection and sparse products. `variants/`: one file per architecture. `convert/`: one per file format.
- `training/`: from a model and a text to an SAE.
- `hookpoints.py`: where in a model; `latent_use.py`: how often. `edits.py`: of latents. `intervene.py`: splicing.
- `steering.py`, `steer.py`. `spliced.py`, `metrics.py`, `metric_sums.py`, `report.py`, `pictures.py`: what is lost.
  `tapped.py`: what is at a place. `top_tokens.py`, `neuronpedia.py`: one latent. `kept.py`: in run folders.

May import `hooks`, `passes`, `runs`, `files`, `folders`, `sharing`, `hub`; never `routing`. A new architecture goes
into `variants/`, a new file format into `convert/`.
"""
