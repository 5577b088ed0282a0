"""Run folders: the results of a long run are kept as they come, so that the same run continues where it was stopped.

Files in reading order:

- `folder.py`: `RunFolder`, records written whole or not at all, each bound to its run and its name by a digest.
- `identity.py`: what a run depends on, as its folder keeps it. `weights_digest.py`: a digest of the model's weights.
  `attached.py`: what is attached to the model. `checkpoints.py`: checkpoints of a Trainer, in a run folder.

May import `files`, `hooks`, `passes` and `routing/router_hook`. A new long function takes `run_folder`, states in
the settings of its `RunFolder` what its result depends on, and reads a record from the folder before it computes it.
"""
