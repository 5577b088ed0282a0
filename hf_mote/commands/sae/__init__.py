"""Commands for sparse autoencoders: `hf-mote sae ...`.

- `convert.py`: from the file format of one library to that of another.

May import everything. A new command is a function in a file here; `hf_mote/cli.py` adds it to `sae_app`.
"""
