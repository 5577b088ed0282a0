"""Commands for sparse autoencoders: `hf-mote sae ...`.

- `train.py`: from a model and a text to an SAE. `evaluate.py`: what it loses, and what the model makes of it.
  `adapt.py`: a LoRA for a model with its SAE.
- `steer.py`: responses with latents changed. `top_tokens.py`: what activates a latent. `experts.py`: which experts it
  drives.
- `convert.py`: from the file format of one library to that of another. `formats.py`: which formats there are.
- `texts.py`: the text that they read. `settings.py`: files of settings, and which architectures there are.
  `dead_latents.py`: what is said of latents that are never active.

A new command is a function in a file here and a line in the table of `hf_mote/cli.py`. May import everything; what is
slow to import (torch, transformers, matplotlib, ...) only inside functions, see `hf_mote/commands`.
"""
