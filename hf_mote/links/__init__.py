"""What joins sparse autoencoders and experts: which latents of an SAE drive which experts of a model.

Files in reading order:

- `latent_expert_map.py`: `LatentExpertMap`, the table, saved and ranked.
- `link.py`: `link_latents`, by the router's weights or by intervention.

May import `sae`, `routing` but `unlisted`, `maps`, `runs`, `hooks`, `passes`, `hub` and `files`: it lies above both,
which do not know each other. Another way to link latents and experts is a method of `link_latents`.
"""
