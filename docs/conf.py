"""Builds the documentation: `python -m sphinx -W --keep-going -b html docs docs/_build/html`.

The pages are MyST Markdown. The reference is made from docstrings, the commands' page from their help, and the
tutorials are the notebooks with the outputs that are committed; `_extensions/` has what makes them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]

project = "hf_mote"
author = "The hf_mote authors"
project_copyright = author
(version,) = re.findall(r'__version__ = "(.+)"', (DOCS.parent / "hf_mote" / "version.py").read_text(encoding="utf-8"))
release = version

extensions = ["myst_nb", "sphinx_copybutton", "made_pages", "name_links"]
exclude_patterns = ["_build", "_extensions", "README.md"]
suppress_warnings = ["config.cache"]
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "hf_mote"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "native"
