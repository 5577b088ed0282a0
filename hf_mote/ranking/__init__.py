"""Finding experts: every (layer, expert) with a score and how sure it is.

- `expert_ranking.py`: `ExpertRanking`, what every method returns.
- `finding.py`: what a ranking shows, in a sentence.
- `imaging/`: by where prompts of a class route (`ftri`).
- `causal/`: by what changes when an expert's weight does.

May import `mote`, `routing`, `maps`, `statistics`, `generation`, `judges`, `runs`, `passes`, `hooks`, `hub`,
`sharing`, `files`, `processes`, `printing` and `plots`; not `evaluation`. A new method is a file in one of the two
folders that returns an `ExpertRanking`.
"""
