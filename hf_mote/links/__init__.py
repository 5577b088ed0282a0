"""Links between sparse autoencoders and experts: which latents of an SAE drive which experts of a model.

Files in reading order:

- `latent_expert_map.py`: `LatentExpertMap`, the table, saved and ranked.
- `link.py`: `link_latents`, by the router's weights or by intervention.

May import `sae`, `routing` but `unlisted`, `maps`, `runs`, `hooks`, `passes`, `hub`, `sharing` and `files`. `sae` and
`routing` do not import each other, so code that needs both is here. Another way to link latents and experts is a
`method` of `link_latents`.
"""
