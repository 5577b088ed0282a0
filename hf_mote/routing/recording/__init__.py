"""Records routing while a model runs, in memory that does not grow with the tokens.

Files in reading order:

- `record.py`: `record_routing` and `RoutingRecord`.
- `tally.py`: the sums: one row of experts for each router, sequence and phase.
- `trace.py`: the routing of every single token, kept on request.

May import `routing/rules`, `routing/sites`, `routing/router_hook`, `passes`, `hooks` and `maps`. A new thing to count
per pass goes into `tally.py`.
"""
