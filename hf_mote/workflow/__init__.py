"""From prompts to a proven config: ranks experts, then measures configs.

Files in reading order:

- `find.py`: `find_experts`, the whole in one call, and `Found`.
- `halves.py`: splits prompts into those to find experts with and those to prove them by.
- `candidates.py`: sets of experts that might carry the behaviour, and the behaviour without them.
- `completed.py`: further sets, where none of these brings another response.
- `work.py`: an upper bound of the work, for `--dry-run`.

May import `ranking`, `evaluation`, `mote`, `routing`, `statistics`, `generation` and `judges`. `commands/find.py`
calls it. A new way to find candidates goes into `candidate_configs` of `candidates.py`, its ranking into `ranking/`.
"""
