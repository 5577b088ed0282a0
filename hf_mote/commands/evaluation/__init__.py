"""`hf-mote evaluate`: whether a config beats random controls, and what else it changes.

Files in the order of a run:

- `command.py`: the command, from its options to what it says in the end.
- `material.py`: prompts, texts and conversations that a config is measured on.
- `configs.py`: what is measured: configs of experts or latents, a server's profile, the same experts stimulated.
- `plan.py`: what would be done (`--dry-run`). `registration.py`: the pre-registration (`--preregister`).
- `files.py`: what is written.

May import everything; what is slow to import (torch, transformers) only inside functions, see `hf_mote/commands`.
"""
