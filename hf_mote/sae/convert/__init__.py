"""File formats of other libraries, one file each, to read and to write; `load_sae` and `export_sae` choose among them.

Files in reading order:

- `api.py`: `load_sae`, `export_sae`, `list_saes`. `registry.py`: the table of formats, and detection of a folder's
  format.
- `releases.py` with `releases.json`: public SAEs by name. `download.py`: files from the Hub.
- `formats.py`: the interface of a format. `names.py`: names of models and hookpoints in transformers.
- One format each: `native.py`, `saelens.py`, `sparsify.py`, `dictionary_learning.py`, `gemma_scope.py`,
  `qwen_scope.py`, `circuit_tracer.py`, `circuit_tracer_clt.py`, `lm_saes.py`, `hook_z.py`, `torch_releases.py`,
  `openai.py`, `opensae.py`; `refused.py` for known formats that are not read; `layout.py` for files without a format.
- `tensors.py`, `values.py`: tensors and numbers of foreign files, checked. `archives.py`: zip files of torch and
  numpy. `card.py`.

May import `sae`, `files`, `documents`, `folders` and `sharing`. A new format is a file here, a row in
`registry.py`, and its name in `commands/names.py`.
"""

from hf_mote.sae.convert.api import export_sae, list_saes, load_sae
from hf_mote.sae.convert.layout import SAELayout

__all__ = ["SAELayout", "export_sae", "list_saes", "load_sae"]
