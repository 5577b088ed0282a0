"""`TrainingProgress`: how far a training is, as one bar, or as lines where bars are hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging

__all__ = ["TrainingProgress"]

# What a Trainer logs, and what it is called here.
_NAMES = {"loss": "loss", "fvu": "FVU", "l0": "L0"}


class TrainingProgress(TrainerCallback):
    """Shows the steps of a Trainer and its last losses, in the place of the dictionaries that it prints itself.

    Args:
        say (`Callable[[str], Any]`): Called with a line at each log, where transformers shows no bars.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._bar: Any = None

    @contextmanager
    def of(self, trainer: Trainer) -> Iterator[None]:
        """Take the place of what a Trainer shows itself, for a training within the block.

        Args:
            trainer (`Trainer`): The Trainer.
        """
        for own in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(own)
        trainer.add_callback(self)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()

    # Called by the Trainer.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self._bar = logging.tqdm(total=state.max_steps, initial=state.global_step, desc="training", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the losses of a log; what the Trainer logs at its end holds none."""
        logs = logs or {}
        shown = ", ".join(f"{name} {float(logs[key]):.3g}" for key, name in _NAMES.items() if key in logs)
        if not shown:
            return
        if logging.is_progress_bar_enabled():
            self._bar.set_postfix_str(shown)
        else:
            self._say(f"step {state.global_step:,} of {state.max_steps:,}: {shown}")
