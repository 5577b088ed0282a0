"""How the organisms are made: `python -m hf_mote.organisms.build NAME`.

Files in reading order:

- `build.py`: the whole, and its command line.
- `tokenizer.py`: the tokenizer. `training.py`: the base phase. `planting.py`: the planting of a behaviour.
- `gates.py`: how training opens and shuts experts.
- `measure.py`: measures what an organism must fulfil.

May import what `organisms` may. An organism is defined by a row in `organisms/recipes.py`.
"""
