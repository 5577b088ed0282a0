"""The routers of a live model: found, read, tested and identified.

Files in reading order:

- `site.py`: `RouterSite`, one router with its rule and numbers.
- `output.py`: `RouterOutput`, the usual router output. `special_outputs.py`: the routers that do more than their rule
  says, and what each refuses.
- `packed.py`: weights that a quantisation has packed. `replaced.py`: forwards and modules that somebody has put in the
  place of the model's own.
- `placement.py`: wrappers and shards under which a router cannot be hooked.
- `candidates.py`: what looks like a router, and whether the table lists it.
- `discover.py`: `find_routers`.
- `scratch_copy.py`: a copy to run and change. `self_test.py`: whether a router does what its rule says.
- `sampled_weights.py`: the weights elsewhere. `fingerprint.py`: what ties a config to a model.
- `routed_model.py`: `RoutedModel`, all of it, found once for each public call and handed down.

May import `routing/rules`. A router with an output of its own gets a class in `special_outputs.py`.
"""
