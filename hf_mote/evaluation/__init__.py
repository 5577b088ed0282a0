"""Does a config do what it is meant to, and nothing else?

Files in reading order:

- `evaluate.py`: `evaluate_mote`, the whole in one call.
- `changes.py`: what can be measured: a config of experts, or of latents.
- `rates.py`: how often a behaviour shows, before, after and under controls. `engine.py`: a model behind an engine.
- `controls.py`: random controls; `overlap.py`: what p is worth where they overlap. `kept.py`: runs resumed.
- `side_effects.py`: divergence and perplexity on other text. `conversations.py`: several turns.
- `coherence.py`: which responses are no text. `selectivity.py`: what changes elsewhere. `verdict.py`: what it proves.
- `both_ways.py`: suppressed and stimulated. `preregistration.py`: what will be measured, written down before.
- `report.py`: `EvaluationReport`; `records.py`: its parts; `report_file.py`: its file. `sweep.py`: several settings.
- `edit_checks.py`: what an edit is defined to do. `router_copies.py`: what a copy on changed logits does.
- `model_check.py`: `check_model`, whether all that is claimed holds on one model as it was loaded.

May import `mote`, `runs`, `routing`, `passes`, `hooks`, `statistics`, `generation`, `judges`, `hub`, `sharing` and
`files`; not `ranking` and not `sae`. A new measurement is a file here and a field in `records.py`.
"""
