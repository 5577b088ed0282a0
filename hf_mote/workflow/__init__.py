"""From prompts to a proven config: what ranks experts and what measures configs, one after the other.

Files in reading order:

- `find.py`: `find_experts`, the whole in one call, and `Found`.
- `halves.py`: which prompts are looked at, and which prove.
- `candidates.py`: sets of experts that might carry the behaviour, and what becomes of it without them.
- `completed.py`: further sets, where none of these brings another response.
- `work.py`: how much there is to do at most, for `--dry-run`.

May import `ranking`, `evaluation`, `mote`, `routing`, `statistics`, `generation` and `judges`. `commands/find.py`
calls it. A new way to find candidates goes into `candidate_configs` of `candidates.py`, its ranking into `ranking/`.
"""
