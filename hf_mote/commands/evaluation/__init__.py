"""`hf-mote evaluate`: whether a config beats random controls, and what else it changes.

Files in the order of a run:

- `command.py`: the command: its options, its steps and its messages.
- `material.py`: prompts, texts and conversations that a config is measured on.
- `configs.py`: the configs that are measured: of experts or latents, a server's profile, the same experts stimulated.
- `plan.py`: the plan that `--dry-run` prints. `registration.py`: the pre-registration (`--preregister`).
- `files.py`: the output files.

May import everything, slow modules (torch, transformers) only inside functions, see `hf_mote/commands`.
"""
