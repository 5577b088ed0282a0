"""`Watcher`: an intervention's participant on the decoder, which hears of each forward."""

from __future__ import annotations

from hf_mote.errors import LivenessError
from hf_mote.hooks import Participant
from hf_mote.routing.forward import Forward
from hf_mote.routing.texts import Marks

__all__ = ["Watcher"]


class Watcher(Participant):
    """A participant on the decoder: hears of each forward, and knows which routers must run in it."""

    thinking_tokens: frozenset[Marks] = frozenset()
    """Pairs of tokens that open and close the thinking, which the intervention wants to know about."""

    minds_passes: bool = True
    """Whether it matters to it what the tokens of a pass are, and when it begins and ends."""

    minds_rows: bool = False
    """Whether it matters to it that a sequence moves to another row of the batch."""

    minds_phases: bool = False
    """Whether it matters to it what is prompt and what is generated."""

    def __init__(self) -> None:
        self._expected: dict[str, Participant] = {}
        self._proven = False

    def expect(self, path: str, participant: Participant) -> None:
        """Expect the router at a path, and this participant on it, to run in every forward."""
        participant.ran = False
        self._expected[path] = participant

    def on_forward(self, forward: Forward) -> None:
        """Hear of a forward that begins."""

    def observes(self, forward: Forward) -> bool:
        """Return whether its observers have any use for what routers do in a forward that it has heard of."""
        return True

    def wants(self, forward: Forward) -> bool:
        """Return whether routers must be looked at: for its observers, or to know that they run."""
        return self.active and (not self._proven or self.observes(forward))

    def on_trace(self, forward: Forward) -> None:
        """Hear of a forward that is being compiled; raise if that cannot work."""

    def on_end(self, forward: Forward) -> None:
        """Hear of a forward that ends."""

    def check_alive(self) -> None:
        """Raise [`LivenessError`] if a router did not run in the first forward since attaching."""
        if self._proven or not self.active:
            return
        silent = [path for path, participant in self._expected.items() if not participant.ran]
        if silent:
            raise LivenessError(
                silent[0],
                f"{len(silent)} of {len(self._expected)} hooked routers did not run in the forward pass",
                expected="every router to run",
                fix="A fused kernel bypasses the module: load without use_kernels, and dequantise MXFP4 weights.",
            )
        self._proven = True
