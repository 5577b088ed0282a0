"""Profiles served at scale: a `MoTEConfig` for each request, inside vLLM, checked against the same rules.

In reading order:

- `settings.py`: what an engine is told: profiles by name, how many, what is recorded;
- `profiles.py`: profiles as tables, and the routing of a batch whose tokens follow different ones; torch alone;
- `routers.py`: vLLM's routers: which are understood, which are refused, the self-test;
- `requests.py`: which profile a request follows, and its prefix cache;
- `plugin.py`: the entry point that vLLM calls;
- `workers.py`, `cpu_worker.py`, `gpu_worker.py`: the worker process;
- `recorded.py`: what was recorded, as activation maps;
- `engine.py`: an engine in this process; `routes.py` and `client.py`: a server, on its side and on ours;
- `checkpoints.py`: what vLLM reads in a checkpoint and transformers does not write.

May import `mote`, `routing/rules`, `routing/sites`, `maps` and `web`.
"""
