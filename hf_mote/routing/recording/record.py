"""Routing seen during forward and generate: activation maps per sequence and phase, in bounded memory.

Counts and routing weights are added up on the model's device, `(sequences, experts)` for each router, phase and batch.
Padding is not counted, and each token is counted once; the last sampled token is never fed back and has no routing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from warnings import warn

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError, RouterContractError, UnsupportedError
from hf_mote.hooks import Intervention
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.passes.forward import DecoderParticipant, Forward, Phase
from hf_mote.routing.recording.tally import Tally
from hf_mote.routing.recording.trace import RoutingTrace
from hf_mote.routing.router_hook import RoutingObserver, attach_to_routers
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = ["RoutingRecord", "RoutingTrace", "record_routing"]

PHASES: tuple[Phase, ...] = ("prompt", "generation")


class RoutingRecord(Intervention):
    """The record of `record_routing`; it has one entry for each sequence so far.

    Removing it stops the recording; what was recorded stays.

    Attributes:
        layers (`tuple[int, ...]`): Absolute decoder layer of each row of the maps.
        num_sequences (`int`): Sequences seen.
        token_filter (`Callable`, *optional*):
            Set it to count only some tokens: called with each forward pass, returns bool `(batch * length,)`, or
            `None` for all.
    """

    def __init__(
        self,
        routed: RoutedModel,
        *,
        phase: Phase | Literal["all"] = "all",
        trace: bool = False,
        eos_token_id: int | Sequence[int] | None = None,
        thinking_tokens: tuple[int, int] | None = None,
    ) -> None:
        self._phases = _phases_of("record_routing.phase", phase)
        self._stops = torch.tensor(_stop_tokens(routed.model) if eos_token_id is None else _as_list(eos_token_id))
        self._size, self.layers = routed.shape, routed.layers
        self.token_filter: Callable[[Forward], Tensor | None] | None = None
        self._batches: dict[int, Tally] = {}  # by run, since runs may take turns
        self._trace = trace
        self._recorders = {site.path: _Recorder(self._batches, row) for row, site in enumerate(routed.sites)}
        clock = _Clock(self, thinking_tokens)
        super().__init__()
        attach_to_routers(routed, clock, lambda site: self._recorders[site.path], handle=self)

    @property
    def only(self) -> Callable[[Forward], Tensor | None] | None:
        """The earlier name of `token_filter`."""
        warn("RoutingRecord.only is deprecated: use token_filter.", DeprecationWarning, stacklevel=2)
        return self.token_filter

    @only.setter
    def only(self, value: Callable[[Forward], Tensor | None] | None) -> None:
        warn("RoutingRecord.only is deprecated: use token_filter.", DeprecationWarning, stacklevel=2)
        self.token_filter = value

    @property
    def num_sequences(self) -> int:
        """Sequences seen so far."""
        return sum(batch.size for batch in self._batches.values())

    def maps(
        self, phase: Phase | Literal["all"] | None = None, *, routing: Literal["applied", "native"] = "applied"
    ) -> list[ActivationMap]:
        """Return one map for each sequence, in the order in which they were run.

        Args:
            phase (`str`, *optional*, defaults to what is recorded):
                `"prompt"`, `"generation"` or `"all"`.
            routing (`str`, *optional*, defaults to `"applied"`):
                `"applied"` is what took effect: an expert whose weight an intervention set to zero is not counted.
                `"native"` is what the routers decided without edits.

        Raises:
            [`ConfigError`]: if phase or routing is not one of these, or the phase is not recorded.
        """
        counts, weights, tokens = self.stacked(phase, routing=routing)
        return [
            ActivationMap(counts=counts[i], weights=weights[i], layers=self.layers, num_tokens=float(tokens[i]))
            for i in range(len(tokens))
        ]

    def stacked(
        self, phase: Phase | Literal["all"] | None = None, *, routing: Literal["applied", "native"] = "applied"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what [`maps`] returns, with the same arguments, as tensors; float64, on the CPU.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: counts and weights of shape `(sequences, layers,
            experts)`, and tokens of shape `(sequences,)`.
        """
        wanted = self._phases if phase is None else _phases_of("RoutingRecord.maps.phase", phase)
        if not set(wanted) <= set(self._phases):
            expected = " or ".join(repr(name) for name in self._phases)
            raise ConfigError("RoutingRecord.maps.phase", "was not recorded", got=repr(phase), expected=expected)
        if routing not in ("applied", "native"):
            raise ConfigError("RoutingRecord.maps.routing", "unknown", got=routing, expected="'applied' or 'native'")
        found = [batch.totals(wanted, routing) for batch in list(self._batches.values())]
        if not found:
            grid = torch.zeros(0, *self._size, dtype=torch.float64)
            return grid, grid.clone(), torch.zeros(0, dtype=torch.float64)
        counts, weights, tokens = (torch.cat(parts) for parts in zip(*found, strict=True))
        return counts, weights, tokens

    def total(self, phase: Phase | Literal["all"] | None = None) -> ActivationMap:
        """Return the sum over all sequences.

        Args:
            phase (`str`, *optional*, defaults to what is recorded): `"prompt"`, `"generation"` or `"all"`.

        Raises:
            [`DataError`]: if nothing was recorded yet.
        """
        maps = self.maps(phase)
        if not maps:
            raise DataError("RoutingRecord.total", "nothing was recorded", fix="Run the model inside the block first.")
        return ActivationMap.mean(maps) * len(maps)

    def traces(self) -> list[RoutingTrace]:
        """Return the token by token routing of each sequence.

        Raises:
            [`ConfigError`]: if the record was not made with `trace=True`.
        """
        if not self._trace:
            raise ConfigError("record_routing.trace", "no trace was kept", got=False, expected=True)
        kept = [(batch.trace, batch.size) for batch in self._batches.values()]
        return [found for trace, size in kept if trace is not None for found in trace.of(size, self.layers)]

    def check_generated(self, output: Tensor, prompt_length: int) -> None:
        """Check that the last recorded passes add up to the output of `generate`.

        Args:
            output (`torch.Tensor` of shape `(sequences, tokens)`, int64): What `generate` returned, prompt and all.
            prompt_length (`int`): Tokens of the prompt, padding counted.

        Raises:
            [`RouterContractError`]: if prompt and generated tokens were not distinguished in the passes. The last
                token is never fed back, and so is not expected.
        """
        read = next(reversed(self._batches.values())).columns if self._batches else {"prompt": 0, "generation": 0}
        wanted = {"prompt": prompt_length, "generation": output.shape[1] - prompt_length - 1}
        if read != wanted:
            raise RouterContractError(
                "record_routing",
                "the recorded passes do not add up to what was generated",
                got=f"{read['prompt']} prompt and {read['generation']} generated tokens",
                expected=f"{wanted['prompt']} and {wanted['generation']}",
                fix="Generate greedily or by sampling, without prefill_chunk_size, and report the version of "
                "transformers if it persists.",
            )

    def forget(self) -> None:
        """Delete what was recorded so far, between runs; the recording continues."""
        self._batches.clear()


def record_routing(
    model: nn.Module,
    *,
    phase: Phase | Literal["all"] = "all",
    trace: bool = False,
    eos_token_id: int | Sequence[int] | None = None,
    thinking_tokens: tuple[int, int] | None = None,
) -> RoutingRecord:
    """Record the routing of a model while it runs, per sequence and phase.

    In a batch, sequences that have ended are padded until the last one ends. Tokens after a sequence's end token are
    not counted, so that its map is the same as when it runs alone.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model; left as it is.
        phase (`str`, *optional*, defaults to `"all"`):
            What to record: `"prompt"`, `"generation"` or both. Other passes then cost less.
        trace (`bool`, *optional*, defaults to `False`):
            Also keep every token's experts and weights, which takes memory that grows with the tokens.
        eos_token_id (`int` or `list[int]`, *optional*, defaults to the model's generation config):
            Tokens that end a generation; give those that you give to `generate`, `[]` for none.
        thinking_tokens (`tuple[int, int]`, *optional*):
            The tokens that open and close the thinking, so that `token_filter` may ask which rows are
            thinking or answer.

    Returns:
        [`RoutingRecord`], a context manager that stops recording when left.

    Example:

    ```python
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import record_routing

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config).eval()
    with record_routing(model, eos_token_id=[]) as record:
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert record.maps("prompt")[0].counts.sum() == 3 * 2 * 2  # tokens x layers x top_k
    assert record.maps("generation")[0].counts.sum() == 3 * 2 * 2  # the fourth token is never fed back
    ```
    """
    return RoutingRecord(
        RoutedModel(model), phase=phase, trace=trace, eos_token_id=eos_token_id, thinking_tokens=thinking_tokens
    )


def _phases_of(where: str, phase: str) -> tuple[Phase, ...]:
    if phase == "all":
        return PHASES
    for name in PHASES:
        if phase == name:
            return (name,)
    raise ConfigError(where, "unknown phase", got=phase, expected=f"{PHASES} or 'all'")


def _stop_tokens(model: nn.Module) -> list[int]:
    """Tokens after which a sequence has ended, and the padding of sequences that ended otherwise."""
    found: list[int] = []
    for name in ("eos_token_id", "pad_token_id"):
        for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
            tokens = getattr(config, name, None)
            if tokens is not None:
                found += _as_list(tokens)
                break
    return found


def _as_list(tokens: int | Sequence[int]) -> list[int]:
    return [tokens] if isinstance(tokens, int) else list(tokens)


class _Clock(DecoderParticipant):
    needs_rows = True
    needs_phases = True

    def __init__(self, record: RoutingRecord, thinking_tokens: tuple[int, int] | None) -> None:
        super().__init__()
        self.record = record
        self.thinking_tokens = frozenset() if thinking_tokens is None else frozenset({thinking_tokens})

    def on_forward(self, forward: Forward) -> None:
        record = self.record
        forward.check_rows("record_routing")
        _ = forward.phases  # raises before anything is counted if phases cannot be distinguished
        batch = record._batches.get(forward.run_id)
        if batch is None:
            batch = Tally(forward, *record._size, stops=record._stops, phases=record._phases, trace=record._trace)
            record._batches[forward.run_id] = batch
        if forward.moved is not None:
            raise UnsupportedError(
                "record_routing",
                "the sequences of the batch changed their rows during the generation, as beams do",
                expected="every sequence in its row",
                fix="Record greedy search or sampling, or run the finished sequences through a plain forward.",
            )
        if batch.size != forward.batch:
            raise UnsupportedError(
                "record_routing",
                "the number of sequences changed in the middle of a generation",
                got=forward.batch,
                expected=batch.size,
                fix="Record greedy search or sampling; beam search moves sequences between rows.",
            )
        batch.begin(forward, None if record.token_filter is None else record.token_filter(forward))

    def reads(self, forward: Forward) -> bool:
        return any(phase in self.record._phases for phase in forward.phases)

    def on_trace(self, forward: Forward) -> None:
        raise UnsupportedError(
            "record_routing",
            "counting in a compiled graph is not supported",
            fix="Record the model itself, not the compiled one.",
        )

    def on_end(self, forward: Forward) -> None:
        self.record._batches[forward.run_id].end(forward)


class _Recorder(RoutingObserver):
    def __init__(self, batches: dict[int, Tally], row: int) -> None:
        self.batches = batches
        self.row = row

    def observe(self, forward: Forward, native: Routing, applied: Routing) -> None:
        self.batches[forward.run_id].add_router(self.row, native, applied)
