"""Prompts in, responses out.

Files in reading order:

- `chat.py`: `Prompt`, and chat templates.
- `prompts.py`: prompts checked and encoded, and which tokens are the user's own text.
- `likeness.py`: prompts that are wordings of one another, noticed. `grid.py`: `prompt_grid`.
- `decoding.py`: arguments of `generate`, seeds, tokens and texts of answers.
- `responses.py`: batches of like length; `generate_responses`.
- `randomness.py`: refuses a model that does not do the same twice.

May import nothing of the package. All prompts become tokens here, so that imaging, attribution and evaluation see the
same ones.
"""
