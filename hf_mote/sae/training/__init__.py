"""From a model and a text to a trained SAE.

Files in reading order:

- `sequences.py`: texts to sequences of tokens.
- `activations.py`: `collect_activations`, a stream that is resumed at any token.
- `start.py`: where a new SAE starts. `group.py`: several SAEs on one stream.
- `trainer.py`: `SAETrainer` and its arguments.

May import what `sae` may.
"""
