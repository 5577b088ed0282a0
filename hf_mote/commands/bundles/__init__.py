"""Groups of options: a dataclass in a command's signature adds its fields as options of the command.

- `bundled.py`: the decorator that adds the fields to the command line.
- `loading.py`: `Loading`, how a model is loaded; `Serving`, a server that runs it.
- `asking.py`: `Templating`, how prompts become tokens; `Sampling` and `Generating`, how responses are generated.
- `evidence.py`: `Reading`, how prompts are read; `Judging`, what labels responses; `Pairing`, two responses to each.
- `results.py`: `Choosing`, which experts of a ranking are used; `Writing`, where results are written.

May import what `hf_mote/commands` may, and slow imports only inside functions. An option's name, help and range are in
`../options.py`, its default here, or in the signature of a command with another default. A new bundle is for options
that several commands take and pass on together; a field is added only if all commands with the bundle take it.
"""
