"""The routers of a live model: found, read, tested and identified.

Files in reading order:

- `site.py`: `RouterSite`, one router with its rule and numbers.
- `output.py`: `RouterOutput`, the usual router output. `special_outputs.py`: the routers that do more than their rule
  says, and what each refuses.
- `placement.py`: wrappers and shards under which a router cannot be hooked. `packed.py`: quantised weights.
  `replaced.py`: forwards, routers and blocks that somebody has replaced.
- `candidates.py`: what looks like a router, and whether the table lists it.
- `discover.py`: `find_routers`.
- `scratch_copy.py`: a copy to run and change. `self_test.py`: whether a router does what its rule says.
- `fingerprint.py`: what ties a config to a model. `routed_model.py`: the decoder around all routers.

May import `routing/rules`. A router with an output of its own gets a class in `special_outputs.py`.
"""
