"""Measures whether a config does what it is meant to, and what else it changes.

Files in reading order:

- `evaluate.py`: `evaluate_mote`, the whole in one call.
- `changes.py`: what can be measured: a config of experts, or of latents.
- `rates.py`: how often a behaviour shows, before, after and under controls. `engine.py`: a model behind an engine.
- `controls.py`: random controls; `overlap.py`: p values where controls overlap. `kept.py`: what a run folder keeps.
- `side_effects.py`: divergence and perplexity on other text. `conversations.py`: several turns.
- `coherence.py`: incoherent responses. `selectivity.py`: changes on other prompts. `verdict.py`: the verdict.
- `both_ways.py`: suppressing and stimulating compared. `preregistration.py`: the plan, written down before measuring.
- `report.py`: `EvaluationReport`; `records.py`: its parts; `report_file.py`: its file. `sweep.py`: several settings.
- `edit_checks.py`: checks of an edit by its definition. `router_copies.py`: checks by a copy of the router.
- `model_check.py`: `check_model`, which tests all features on one loaded model.

May import `mote`, `runs`, `routing`, `passes`, `hooks`, `statistics`, `generation`, `judges`, `hub`, `sharing`,
`files`, `printing` and `plots`; not `ranking` or `sae`. A new measurement is a file here and a field in `records.py`.
"""
