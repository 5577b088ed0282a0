"""The commands of the command line, one file each, named in the table of `cli.py`.

What they share: `options.py` (arguments and options), `names.py` (names shown in the help), `model.py`, `prompts.py`,
`conversations.py`, `judge_specs.py` (what the arguments stand for), `session.py` (errors, messages, provenance),
`run_files.py` (the folder that a command writes).

A command's module is imported to print its help. So it imports torch, transformers and what stands on them only in the
functions that need them, after everything that can be known from the arguments has been checked. `tests/test_lazy.py`
holds every command to it.
"""
