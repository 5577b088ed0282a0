"""Two classes of prompts compared, in numpy and scipy; nothing of models.

Files in reading order:

- `inputs.py`: one map per prompt, and which prompts are of the class; checked once for all.
- `groups.py`: groups of prompts that are one piece of evidence.
- `scores.py`: mean difference, risk difference, log odds and the others: the table `SCORES`.
- `resampling.py`: a score under resampled or relabelled prompts.
- `permutation.py`: p values. `intervals.py`: confidence intervals. `stability.py`: the top under resampling.
- `alike.py`: experts that the same prompts use.
- `contrast.py`: all of it for every expert at once. `large.py`: the same for thousands of prompts, from moments.
- `predictability.py`: whether routing tells the classes apart, and within topics.
- `rates.py`: `Rate`, a share with its Wilson interval; `SIGNIFICANT`.

May import nothing of the package. A new statistic is a function in `scores.py`, a row of `SCORES`, and
its name in `commands/names.py`.
"""
