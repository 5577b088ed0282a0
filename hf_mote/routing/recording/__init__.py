"""Routing recorded while a model runs, in memory that does not grow with the tokens.

Files in reading order:

- `record.py`: `record_routing` and `RoutingRecord`.
- `tally.py`: the sums: one row of experts for each router, sequence and phase.
- `trace.py`: token by token routing, kept on request.

May import the storeys above it, `passes`, `hooks` and `maps`. A new thing to count per pass goes into `tally.py`.
"""
