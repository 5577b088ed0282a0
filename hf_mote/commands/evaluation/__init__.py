"""`hf-mote evaluate`: does a config beat random controls, and what else does it change.

Files in the order of a run:

- `command.py`: the command, from its options to what it says in the end.
- `material.py`: prompts, texts and conversations that a config is measured on.
- `configs.py`: what is measured: configs of experts or latents, a server's profile, the same experts stimulated.
- `plan.py`: what would be done (`--dry-run`). `registration.py`: the pre-registration (`--preregister`).
- `files.py`: what is written.

May import everything, but what is slow in its functions; see `hf_mote/commands`.
"""
