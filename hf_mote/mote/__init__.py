"""Changes of routing: configs, and how they are attached to a model.

Files in reading order:

- `config.py`: `MoTEConfig`, which experts are suppressed, stimulated, biased or scaled, how and when.
- `fields.py`: checks of single fields. `checks.py`: whether a config fits a model. `config_card.py`: its card.
- `patch.py`: `apply_mote`.
- `bake.py`: `bake_mote`, a config folded into a plain checkpoint, with `baked_model.py` and `bake_proof.py`.
- `tunable.py`: `tunable_mote`, gains and biases as trainable parameters. `tuned_sites.py`: at one router.
  `tuned_values.py`: their file and config.
- `gains.py`: a gain on every routing weight, and `updates.py`: what each expert adds; causal rankings use them.

May import `routing` (not `unlisted`), `passes`, `hooks`, `hub`, `sharing`, `files`, `folders` and `printing`. A new
field is declared in `config.py`, checked in `fields.py` and turned into a `RoutingEdit` in `patch.py`.
"""
