"""The `hf-mote` command: one file for each command, and the code that they share.

- Commands: `families.py`, `organisms.py`, `demo.py`, `find.py`, `imaging.py` (`ftri`), `attribution.py`,
  `routes.py`, `evaluation/` (`evaluate`), `sweep.py`, `grid.py`, `chat.py`, `served_chat.py`, `check.py`, `env.py`,
  `bake.py`, `serve.py`, `init.py`, `configs.py`, `validate.py` (with `config_problems.py`), `push.py`, and `sae/`.
- Their inputs: `options.py`, `bundles/` (groups of options), `names.py` (names shown in the help),
  `model.py` (with `model_files.py` and `tokenizer_files.py`), `served.py` (`--server`), `prompts.py`,
  `conversations.py`, `record_files.py`, `datasets.py`, `judge_specs.py`, `latent_maps.py` (`--latents`).
- Shared steps: `session.py` (messages, errors), `typed.py` (the options that errors name), `verbosity.py` (which
  messages are shown), `plan.py` (`--dry-run`), `run_files.py` (the output folder), `token_routing.py`.

May import everything. A new command is a function in a file here and a line in the table of `hf_mote/cli.py`. Its
module is imported to print its help. So it imports torch, transformers and what depends on them only in its functions,
after the arguments have been checked; `tests/test_lazy.py` checks every command.
"""
