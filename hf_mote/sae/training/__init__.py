"""From a model and a text to a trained SAE.

Files in reading order:

- `sequences.py`: texts to sequences of tokens. `windows.py`: sequences to windows of activations, and which tokens
  are left out. `cache.py`: windows on disk. `scaling.py`: factors on activations.
- `activations.py`: `collect_activations`, a stream of shuffled batches that can be continued. `stream_state.py`:
  checks of the position that a checkpoint names.
- `start.py`: how a new SAE is initialised from the first batch.
- `group.py`: several SAEs trained on one stream. `step_parts.py`: the micro-batches of a step.
- `end_to_end.py`: losses of the model with an SAE spliced in.
- `arguments.py`: `SAETrainingArguments`. `trainer.py`: `SAETrainer`. `progress.py`: how far it is.
- `last_checkpoint.py`: where training goes on.
- `adapt.py`: `adapt_to_sae`, a LoRA for a model with its SAE.

May import what `sae` may. A new way to train is a method or a callback of `SAETrainer`.
"""
