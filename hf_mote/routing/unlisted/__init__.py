"""Routers that the table of families lacks, accepted if exactly one rule reproduces them.

Files in reading order:

- `register.py`: `register_routers`, which tries the rules and registers the one that fits.
- `experiments.py`: one router run alone, compared with a rule, and what tells two rules apart.

May import `routing/rules` and `routing/sites`. Nothing in the package imports this folder but the public name.
"""
