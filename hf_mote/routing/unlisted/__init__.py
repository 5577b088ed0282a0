"""Routers that the table of families lacks, accepted if exactly one rule reproduces them.

Files in reading order:

- `register.py`: `register_routers`, which tries the rules and registers the one that fits.
- `experiments.py`: runs one router alone, compares it with a rule, and finds differences between rules.

May import `routing/rules` and `routing/sites`. Only the public name imports this folder.
"""
