"""Judges: each turns a response into a label.

Files in reading order:

- `judge.py`: what a judge is; `classify`, which runs one over responses.
- `refusal.py`, with `refusal_phrasings.py`: refusals by their wording, in five languages.
- `regex.py`: your own patterns. `choice.py`: the option of a multiple-choice answer. `language.py`: the language.
- `language_model.py`: a language model in this process. `server.py`: one behind a server.

May import `generation`, `files` and `web`. A new judge is a file with a class that has `target`, `labels` and
`__call__`; to be named on the command line it also needs a line in `commands/judge_specs.py`.
"""
