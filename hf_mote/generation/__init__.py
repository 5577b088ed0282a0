"""Prompts in, responses out.

Files in reading order:

- `chat.py`: `Prompt`, and chat templates.
- `prompts.py`: prompts checked, and rows of tokens padded.
- `asking.py`: `Chat`, how prompts become tokens, and `Decoding`, how responses are generated.
- `likeness.py`: finds prompts that are wordings of one another. `grid.py`: `prompt_grid`.
- `decoding.py`: seeds, tokens and texts of answers. `certainty.py`: how sure a model is of what it writes.
- `responses.py`: batches of like length; `generate_responses`.
- `randomness.py`: refuses a model that draws random numbers.
- `recording_engine.py`: what an inference engine must offer that imaging and evaluation use.

May import nothing of the package. All prompts become tokens in `asking.py`, so that imaging, attribution and
evaluation see the same ones.
"""
