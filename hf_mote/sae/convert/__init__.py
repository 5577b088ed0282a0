"""File formats of other libraries, one file each, both ways; `load_sae` and `export_sae` choose among them.

In reading order: `api.py`; `registry.py` (which format a folder is in), `releases.py` (public SAEs by name, with
`releases.json`), `download.py`; `formats.py` (what a format is), `names.py` (models and places as transformers has
them), `tensors.py`, `values.py`, `documents.py`; one file for each format; `layout.py` for what has none.
"""

from hf_mote.sae.convert.api import export_sae, list_saes, load_sae
from hf_mote.sae.convert.layout import SAELayout

__all__ = ["SAELayout", "export_sae", "list_saes", "load_sae"]
