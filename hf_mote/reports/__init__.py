"""HTML pages of what was measured; no arithmetic.

Files in reading order:

- `markup.py`: markup that escapes by default. `formats.py`: how numbers are written. `tables.py`, `charts.py`,
  `heat_map.py`, `responses.py`, `tokens.py`: the parts of pages.
- `page.py`, with `style.css`: the page around them.
- `rankings.py`: a ranking for people.
- One page for each command: `imaging.py`, `attribution.py`, `evaluation.py`, `sweep.py`, `latents.py`.

May import `ranking`, `evaluation`, `statistics`, `maps`, `sae` and `files`. A new page is a file here that the command
calls.
"""
