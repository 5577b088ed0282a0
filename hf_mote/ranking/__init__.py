"""Rankings of experts: every (layer, expert) with a score and its uncertainty.

- `expert_ranking.py`: `ExpertRanking`, what every method returns.
- `finding.py`: a sentence on what a ranking shows.
- `p_values.py`: p and q of a ranking, held against each other and the test.
- `imaging/`: rankings by the experts that prompts of a class use (`ftri`).
- `causal/`: rankings by the effect of an expert's weight.

May import `mote`, `routing`, `maps`, `statistics`, `generation`, `judges`, `runs`, `passes`, `hooks`, `hub`,
`sharing`, `files`, `processes`, `printing` and `plots`; not `evaluation`. A new method is a file in one of the two
folders that returns an `ExpertRanking`.
"""
