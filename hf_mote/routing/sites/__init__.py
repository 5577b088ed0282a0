"""The routers of a live model: found, read, tested and identified.

Files in reading order:

- `site.py`: `RouterSite`, one router with its rule and numbers.
- `output.py`: `RouterOutput`, the usual router output. `special_outputs.py`: the routers that do more than their rule
  states, and what each refuses.
- `packed.py`: weights that a quantisation has packed. `replaced.py`: forwards and modules that
  replace the model's own.
- `placement.py`: wrappers and shards under which a router cannot be hooked.
- `candidates.py`: modules that look like routers, and whether the table lists them.
- `discover.py`: `find_routers`.
- `scratch_copy.py`: a copy to run and change. `self_test.py`: whether a router follows its rule.
- `sampled_weights.py`: a sample of the other weights. `fingerprint.py`: identifies the model of a config.
- `routed_model.py`: `RoutedModel`, which holds all of these for one public call.

May import `routing/rules`. A router with an output of its own gets a class in `special_outputs.py`.
"""
