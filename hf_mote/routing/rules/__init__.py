"""How routers choose experts: declarative rows, and pure functions of logits.

Files in reading order:

- `rule.py`: `RoutingRule`, the properties in which routers differ.
- `families.py`: `RULES`, the table of supported families, and `REFUSED`, the families that cannot work.
- `registry.py`: which rule a router class follows, from the table or registered.
- `selection.py`: from logits to experts and weights; `BoundRule` is a rule with one router's numbers.
- `edits.py`: `RoutingEdit`, what to change in a selection.
- `shortcuts.py`: when the values of a tensor may be read to skip work.

May import nothing of the package. A new family or rule goes into `families.py`; what the fields of
`RoutingRule` cannot express is a new field in `rule.py`, computed in `selection.py`.
"""
