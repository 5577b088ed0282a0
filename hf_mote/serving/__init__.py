"""Profiles inside vLLM: a `MoTEConfig` for each request, checked by the same rules.

In reading order:

- `settings.py`: the settings of an engine: profiles by name, limits, recordings;
- `profiles.py`: profiles as tables, and the routing of a batch whose tokens follow different ones; torch alone;
- `routers.py`: vLLM's routers: which are supported, which are refused, the self-test;
- `requests.py`: which profile a request follows, and its prefix cache;
- `plugin.py`: the entry point that vLLM calls;
- `workers.py`, `cpu_worker.py`, `gpu_worker.py`: the worker process;
- `recorded.py`: recordings as activation maps;
- `engine.py`: an engine in this process; `routes.py` and `client.py`: a server, on its side and on the client's;
- `checkpoints.py`: writes checkpoints with the settings that vLLM needs.

May import `mote`, `routing/rules`, `routing/sites`, `maps`, `files` and `web`.
"""
