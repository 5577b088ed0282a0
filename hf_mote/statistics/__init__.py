"""Comparisons of two classes of prompts, in numpy and scipy, without models.

Files in reading order:

- `inputs.py`: checks of the input: one map per prompt, and which prompts are of the class.
- `groups.py`: groups of prompts that are one piece of evidence.
- `scores.py`: mean difference, risk difference, log odds and the others: the table `SCORES`.
- `resampling.py`: a score under resampled or relabelled prompts.
- `permutation.py`: p values. `intervals.py`: confidence intervals. `stability.py`: the top under resampling.
- `alike.py`: experts that the same prompts use.
- `contrast.py`: all of these for every expert at once. `large.py`: the same for thousands of prompts, from moments.
- `predictability.py`: whether routing separates the classes, and within topics.
- `rates.py`: `Rate`, a share with its Wilson interval; `SIGNIFICANT`.

May import nothing of the package. A new statistic is a function in `scores.py`, a row of `SCORES`, and
its name in `commands/names.py`.
"""
