"""File formats of other libraries, one file each, both ways; `load_sae` and `export_sae` choose among them.

Files in reading order:

- `api.py`: `load_sae` and `export_sae`. `registry.py`: the table of formats, and which of them a folder is in.
- `formats.py`: what a format must say and do.
- One format each: `native.py`, `saelens.py`, `sparsify.py`, `dictionary_learning.py`, `gemma_scope.py`.
- `tensors.py` and `values.py`: tensors and numbers of foreign files, checked. `download.py`: files from the Hub.

May import `sae` and `files`. A new format is a file here and a row in `registry.py`.
"""

from hf_mote.sae.convert.api import export_sae, load_sae

__all__ = ["export_sae", "load_sae"]
