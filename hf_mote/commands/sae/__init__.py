"""Commands for sparse autoencoders: `hf-mote sae ...`.

- `convert.py`: from the file format of one library to that of another.

A new command is a function in a file here and a line in the table of `hf_mote/cli.py`. May import everything, but what
is slow (torch, transformers, matplotlib, ...) in its functions; see `hf_mote/commands`.
"""
