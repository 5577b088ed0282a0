"""Profiles served at scale: a `MoTEConfig` for each request, inside vLLM, checked against the same rules.

In reading order: `settings.py` (what an engine is told: profiles by name, how many, what is recorded), `profiles.py`
(profiles as tables, the routing of a batch whose tokens follow different ones, what was recorded; torch alone),
`routers.py` (vLLM's routers: which are understood, which are refused, the self-test), `requests.py` (which profile a
request follows, and its prefix cache), `plugin.py` (the entry point that vLLM calls), `workers.py` with
`cpu_worker.py` and `gpu_worker.py` (the worker process), `engine.py` (loading profiles and recording from Python),
`routes.py` (the same over HTTP), `checkpoints.py` (what vLLM reads in a checkpoint and transformers does not write).

May import `mote`, `routing` and `maps`.
"""
