"""Does a config do what it is meant to, and nothing else?

Files in reading order:

- `evaluate.py`: `evaluate_mote`, the whole in one call.
- `rates.py`: how often a behaviour shows, before, after and under controls.
- `controls.py`: random controls: the same change to experts that no ranking chose.
- `side_effects.py`: divergence and perplexity on other text. `conversations.py`: several turns.
- `report.py`: `EvaluationReport`. `sweep.py`: a report for each setting, with p adjusted for having tried them all.
- `model_check.py`: `check_model`, whether all that is claimed holds on one model as it was loaded.

May import `mote`, `routing`, `passes`, `statistics`, `generation`, `judges`, `hub`, `sharing` and `files`; not
`ranking`. A new measurement is a file here and a field of the report.
"""
