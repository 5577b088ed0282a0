"""The `hf-mote` command: one file for each command, and what they share.

- Commands: `families.py`, `organisms.py`, `demo.py`, `imaging.py` (`ftri`), `attribution.py`, `evaluation.py`,
  `sweep.py`, `bake.py`, `serve.py`, and `sae/convert.py`.
- What they take: `options.py`, `model.py`, `prompts.py`, `conversations.py`, `record_files.py`, `datasets.py`,
  `judge_specs.py`.
- What they do around their work: `session.py` (messages, errors), `run_files.py` (the output folder),
  `token_routing.py` (texts token by token).

May import everything. A new command is a function in a file here; `hf_mote/cli.py` adds it to the application.
"""
