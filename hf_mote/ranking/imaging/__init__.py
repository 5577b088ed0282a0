"""Functional token resonance imaging: prompts, responses, classes, maps, and the rankings that follow.

Files in reading order:

- `pipeline.py`: `ftri`, the whole in one call.
- `engine.py`: imaging through an inference engine.
- `scopes.py`: which tokens are imaged.
- `result.py`: `FTRIResult`. `result_file.py`: its file, and results made from maps.
- `collected.py`: collects batches into the tensors of the result, in memory or in a file.
- `units.py`: the units that a ranking compares: one for each prompt, and pairs. `prompt_maps.py`: their maps, of which
  a few experts at a time are computed in float64.
- `run_folder.py`: batches kept in a run folder, so that a run continues where it stopped.

May import what `ranking` may. A new scope is declared in `scopes.py`.
"""
