"""File formats of other libraries, one file each, both ways; `load_sae` and `export_sae` choose among them."""

from hf_mote.sae.convert.api import export_sae, load_sae

__all__ = ["export_sae", "load_sae"]
