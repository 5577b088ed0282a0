"""Links between sparse autoencoders and experts: which latents drive which experts of a model, or predict them.

Files in reading order:

- `latent_expert_map.py`: `LatentExpertMap`, the table, saved and ranked.
- `link.py`: `link_latents`, by the router's weights or by intervention.
- `prediction.py`: by prediction: sums of latents and choices over the tokens of a text.

May import `sae`, `routing` but `unlisted`, `maps`, `runs`, `hooks`, `passes`, `hub`, `sharing`, `files` and, for
the check of a fingerprint, `mote`. `sae` and `routing` do not import each other, so code that needs both is here.
Another way to link latents and experts is a `method` of `link_latents`.
"""
