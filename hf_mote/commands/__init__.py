"""The `hf-mote` command: one file for each command, and what they share.

- Commands: `families.py`, `organisms.py`, `demo.py`, `find.py`, `imaging.py` (`ftri`), `attribution.py`,
  `evaluation/` (`evaluate`), `sweep.py`, `grid.py`, `chat.py`, `served_chat.py`, `check.py`, `env.py`, `bake.py`,
  `serve.py`, `init.py`, `configs.py`, `validate.py` (with `config_problems.py`), `push.py`, and `sae/`.
- What they take: `options.py`, `bundles/` (options that travel together), `names.py` (names shown in the help),
  `model.py`, `served.py` (`--server`), `prompts.py`, `conversations.py`, `record_files.py`, `datasets.py`,
  `judge_specs.py`, `latent_maps.py` (`--latents`).
- What they do around their work: `session.py` (messages, errors), `typed.py` (what options they name),
  `verbosity.py` (how much of them), `plan.py` (`--dry-run`), `run_files.py` (the output folder), `token_routing.py`.

May import everything. A new command is a function in a file here and a line in the table of `hf_mote/cli.py`. Its
module is imported to print its help. So it imports torch, transformers and what stands on them only in its functions,
after all that the arguments alone can tell has been checked; `tests/test_lazy.py` holds every command to it.
"""
