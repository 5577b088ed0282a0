"""What a router is, in storeys: each may import those above it, never those below.

- `rules/`: how routers choose experts, as declarative rows and pure functions of logits.
- `sites/`: the routers of a live model, found, tested and identified.
- `detour.py`: blocks that go round their router, closed or refused.
- `router_hook.py`: `RouterHook`, the one hook on a router, and its participants: edit, probe, observe.
- `recording/`: `record_routing`, which adds up what routers decide.
- `unlisted/`: `register_routers`, for routers that the table lacks. Nothing in the package imports it.

Each storey's guide says what it may import; none imports `sae`. A new family is a router class in a row of
`rules/families.py`, a tiny config in `tests/tiny_families.py`, and what it does, written down anew, in
`tests/routing/family_reference.py`.
"""
