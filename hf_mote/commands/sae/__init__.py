"""Commands for sparse autoencoders: `hf-mote sae ...`.

- `train.py`: from a model and a text to an SAE. `evaluate.py`: its reconstruction, its sparsity, and the model's
  cross entropy with it. `adapt.py`: a LoRA for a model with its SAE.
- `steer.py`: responses with latents changed. `top_tokens.py`: the tokens that activate a latent. `experts.py`: the
  experts that it drives.
- `convert.py`: from the file format of one library to that of another. `formats.py`: the list of formats.
- `texts.py`: the text that they read. `excluding.py`: tokens that are left out. `settings.py`: files of settings, and
  checks of an architecture. `places.py`: the option for a hookpoint. `dead_latents.py`: notes on latents that are
  never active.

A new command is a function in a file here and a line in the table of `hf_mote/cli.py`. May import everything, slow
modules (torch, transformers, matplotlib, ...) only inside functions, see `hf_mote/commands`.
"""
