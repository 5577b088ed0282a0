"""Routers: their rules, their places in a model, the hook on them, and their decisions.

In reading order; none imports one below it:

- `rules/`: how routers choose experts, as declarative rows and pure functions of logits.
- `sites/`: finds, tests and identifies the routers of a live model.
- `detour.py`: blocks that bypass their router, which are made to call it or refused.
- `router_hook.py`: `RouterHook`, the one hook on a router, and its participants: edit, probe, observe.
- `recording/`: `record_routing`, which sums up the decisions of routers.
- `unlisted/`: `register_routers`, for routers that the table lacks. Nothing in the package imports it.

`ARCHITECTURE.md` says what each may import; none may import `sae`. A new family is a router class in a row of
`rules/families.py`, a tiny config in `tests/tiny_families.py`, and a reference of what it does in
`tests/routing/family_reference.py`.
"""
