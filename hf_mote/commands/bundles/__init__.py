"""Options that travel together: a dataclass in a command's signature stands for the options that are its fields.

- `bundled.py`: the decorator that puts the fields on the command line.
- `loading.py`: `Loading`, how a model is loaded; `Serving`, a server that has it.
- `asking.py`: `Templating`, how prompts become tokens; `Sampling` and `Generating`, how responses come.
- `evidence.py`: `Reading`, how prompts are read; `Judging`, what labels responses.
- `results.py`: `Choosing`, which experts of a ranking count; `Writing`, where results go.

May import what `hf_mote/commands` may; what is slow to import only inside functions. An option's name, help and range
stand in `../options.py`; its default here, or in the signature of a command that has another. A new bundle is for
options that several commands take and hand on together; a field is added only if all commands with the bundle take it.
"""
