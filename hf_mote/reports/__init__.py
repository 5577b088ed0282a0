"""HTML pages of measurements; no arithmetic.

Files in reading order:

- `markup.py`: markup that escapes by default. `formats.py`: how numbers are written. `tables.py`, `charts.py`,
  `curves.py`, `heat_map.py`, `responses.py`, `tokens.py`, `configs.py`: the parts of pages.
- `page.py`, with `style.css` and `page.js`: the page around them, and the one script that it runs.
- `rankings.py`: the table of a ranking. `explorer.py`: all experts, for the script to sort, filter and show.
- One page for each command: `find.py`, `imaging.py`, `attribution.py`, `routes.py`, `evaluation.py`, `sweep.py`,
  `latents.py`, `demo.py`, `links.py`, `sae.py`.

May import `ranking`, `evaluation`, `workflow`, `statistics`, `maps`, `sae`, `links`, `drawing` and `files`. A new page
is a file here that the command calls.
"""
