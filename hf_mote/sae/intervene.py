"""`splice_sae` and the hooks of `steer`: an SAE replaces activations, or its latents are changed, in every pass.

The hooks are those of `hf_mote/hooks.py`, and the decoder's hook of `passes/` gives the tokens of a scope,
as for MoTE: both can be used on one model together.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError, LivenessError, UnsupportedError, real, whole
from hf_mote.hooks import Attachment, Intervention, attach, stack_on
from hf_mote.passes.assisted import assisted_decoding_hooks
from hf_mote.passes.decoder_hook import DecoderHook, decoder_of
from hf_mote.passes.forward import DecoderParticipant, Forward, all_of, why_stopped
from hf_mote.sae.edits import SCOPES, Edits, EditTable, LatentEdit, Scope, read_edits, table_of
from hf_mote.sae.fields import excluded_positions
from hf_mote.sae.hookpoints import AtHookpoint, Hookpoint, attachments_at, resolve_hookpoints
from hf_mote.sae.inputs import in_blocks
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.selective import SelectiveSAEModel

__all__ = ["dictionary_rows", "sites_of", "splice_sae", "steer_latents", "unwrapped"]


def splice_sae(
    model: nn.Module,
    sae: SAEModel | Sequence[SAEModel],
    *,
    hookpoint: str | None = None,
    scope: Scope = "all",
    thinking_tokens: tuple[int, int] | None = None,
    exclude_tokens: Sequence[int] = (),
    exclude_positions: str | None = None,
    norm_limit: float | None = None,
) -> Intervention:
    """Replace a model's activations by an SAE's reconstruction, until the handle is removed.

    An SAE that was trained without some tokens, such as the first one and attention sinks, reconstructs them badly,
    and a model with such reconstructions fails. Leave the same tokens out here: their own activations stay.

    Args:
        model (`nn.Module`): Any model, one with a PEFT adapter, too; it stays the same object, with the same weights.
        sae ([`SAEModel`] or a list of them):
            In evaluation mode. Each at its `config.hookpoint`; a transcoder reads there and writes at its
            `config.output_hookpoint`.
        hookpoint (`str`, *optional*): Where a single SAE goes instead.
        scope (`str`, *optional*, defaults to `"all"`):
            On which tokens: `"all"`, `"prompt"`, `"generation"`, or `"thinking"` or `"answer"`, as in [`MoTEConfig`].
        thinking_tokens (`tuple[int, int]`, *optional*): The tokens that open and close the thinking.
        exclude_tokens (`Sequence[int]`, *optional*): Ids of tokens to leave out, such as the tokenizer's special ones.
        exclude_positions (`str`, *optional*):
            Positions of each sequence to leave out, counted without padding: `"first:4"`, or a slice `"0:4"`.
        norm_limit (`float`, *optional*):
            Leave out tokens whose activation (a transcoder's input) is longer, in the model's own units (L2); the
            same at the hookpoints of several SAEs.

    Returns:
        [`Intervention`]: usable bare (`.remove()`) or in a `with` block. A pass raises [`UnsupportedError`] if
        tokens to leave out cannot be recognised in it: ids where embeddings are given, positions in a compiled graph,
        and both in layers that gradient checkpointing runs again.

    Raises:
        [`ConfigError`]: if there is no hookpoint, the scope is unknown, or what is left out is out of range.
        [`UnknownNameError`]: if the model has no such module.

    Example:

    ```python
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from hf_mote import TopKSAEConfig, TopKSAEModel, splice_sae

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4, hookpoint="transformer.h.0")).eval()
    tokens = torch.tensor([[1, 2, 3]])
    before = model(tokens).logits
    with splice_sae(model, sae):
        assert not torch.equal(model(tokens).logits, before)
    assert torch.equal(model(tokens).logits, before)
    ```
    """
    model = unwrapped(model)
    saes = list(sae) if isinstance(sae, Sequence) else [sae]
    if hookpoint is not None and len(saes) != 1:
        raise ConfigError("splice_sae.hookpoint", "is for one SAE", got=len(saes), fix="Set config.hookpoint of each.")
    left_out = _exclusions("splice_sae", exclude_tokens, exclude_positions, norm_limit)
    plans = [
        _Plan(
            model,
            one,
            [[]],
            False,
            hookpoint,
            scope,
            thinking_tokens,
            1.0,
            "splice_sae",
            keep_error=False,
            left_out=left_out,
        )
        for one in saes
    ]
    return _attach(model, plans)


def steer_latents(
    model: nn.Module,
    sae: SAEModel,
    edits: Edits | Sequence[Edits | None] | None,
    *,
    hookpoint: str | None,
    scope: Scope,
    thinking_tokens: tuple[int, int] | None,
    strength: float,
    keep_error: bool,
) -> Intervention:
    """Change latents as [`steer`] does, which has the same arguments; `edits` must not be a config here."""
    model = unwrapped(model)
    by_row = isinstance(edits, Sequence) and not isinstance(edits, str)
    if by_row and not edits:
        raise ConfigError("steer.edits", "an empty list", expected="a dict or None for each row of the batch")
    given: list[Any] = list(edits) if by_row else [edits]  # type: ignore[arg-type]
    count = sae.config.num_latents
    rows = [
        read_edits(f"steer.edits[{row}]" if by_row else "steer.edits", entry, count) for row, entry in enumerate(given)
    ]
    plan = _Plan(model, sae, rows, by_row, hookpoint, scope, thinking_tokens, strength, "steer", keep_error=keep_error)
    return _attach(model, [plan])


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a PEFT model, whose modules have the paths that hookpoints name; another as it is.

    Args:
        model (`nn.Module`): The model.
    """
    inner: Any = getattr(model, "get_base_model", None)
    found: nn.Module = model if inner is None else inner()
    return found


def sites_of(model: nn.Module, sae: SAEModel, hookpoint: str | None, where: str) -> tuple[Hookpoint, Hookpoint]:
    """Return where an SAE reads and where it writes: for an autoencoder the same.

    Args:
        model (`nn.Module`): The model.
        sae ([`SAEModel`]): The SAE.
        hookpoint (`str`, *optional*): Where it reads, instead of its config's.
        where (`str`): What an error names.

    Raises:
        [`ConfigError`]: if no hookpoint is given, or it stands for several.
        [`UnknownNameError`]: if the model has no such module.
    """
    config = sae.config
    names = [hookpoint or config.hookpoint]
    if config.is_transcoder:
        names.append(config.output_hookpoint)
    points = []
    for name, field in zip(names, ("hookpoint", "output_hookpoint"), strict=False):
        if name is None:
            fix = f"Set config.{field}, such as 'model.layers.10.output'."
            raise ConfigError(f"{where}.{field}", "the SAE does not say where it belongs", fix=fix)
        asked = hookpoint is not None and field == "hookpoint"
        place = f"{where}.hookpoint" if asked else f"{type(sae).__name__}.config.{field}"
        found = resolve_hookpoints(model, name, where=place)
        if len(found) != 1:
            raise ConfigError(place, "stands for several modules", got=repr(name), expected="one")
        points += found
    return points[0], points[-1]


class _Exclusions(NamedTuple):
    """The tokens that keep their own activations, as they can be recognised one pass after the other."""

    tokens: tuple[int, ...] = ()
    positions: slice | None = None
    norm_limit: float | None = None

    def kept(self, forward: Forward | None, inputs: Tensor) -> Tensor | None:
        """Return which rows are not left out, bool `(rows,)`; `None` means all of them."""
        masks: list[Tensor | None] = []
        if self.norm_limit is not None:
            masks.append(torch.linalg.vector_norm(inputs.detach(), dim=1, dtype=torch.float32) <= self.norm_limit)
        if self.tokens:
            assert forward is not None
            if forward.ids is None:
                raise UnsupportedError(
                    "splice_sae.exclude_tokens",
                    "the ids of the tokens of a pass are not known",
                    got="embeddings, or layers that gradient checkpointing runs again",
                    expected="token ids",
                    fix="Give input_ids, and train without gradient checkpointing; or leave no tokens out by "
                    "their ids (exclude_special_tokens=False of adapt_to_sae).",
                )
            ids = forward.ids.reshape(-1)
            masks.append(~torch.isin(ids, torch.tensor(self.tokens, device=ids.device)))
        if self.positions is not None:
            assert forward is not None
            masks.append(~forward.tokens_between(self.positions.start or 0, self.positions.stop))
        return all_of(*(None if mask is None else mask.to(inputs.device) for mask in masks))


_NOTHING = _Exclusions()


def _exclusions(where: str, tokens: Sequence[int], positions: str | None, norm_limit: float | None) -> _Exclusions:
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise ConfigError(f"{where}.exclude_tokens", "must be a list of token ids", got=repr(tokens)[:80])
    for token in tokens:
        whole(f"{where}.exclude_tokens", token, least=0)
    if norm_limit is not None:
        real(f"{where}.norm_limit", norm_limit, above=0)
    return _Exclusions(tuple(tokens), excluded_positions(positions), norm_limit)


class _Plan:
    """One SAE's part: hookpoint, tokens, and edits."""

    def __init__(
        self,
        model: nn.Module,
        sae: SAEModel,
        rows: Sequence[Sequence[LatentEdit]],
        by_row: bool,
        hookpoint: str | None,
        scope: str,
        thinking_tokens: Sequence[int] | None,
        strength: float,
        where: str,
        *,
        keep_error: bool,
        left_out: _Exclusions = _NOTHING,
    ) -> None:
        if scope not in SCOPES:
            expected = ", ".join(map(repr, SCOPES))
            raise ConfigError(f"{where}.scope", "unknown name", got=repr(scope), expected=expected)
        if (scope in ("thinking", "answer")) != (thinking_tokens is not None):
            raise ConfigError(
                f"{where}.thinking_tokens",
                "belong to the scopes 'thinking' and 'answer'",
                got=f"{thinking_tokens} with scope {scope!r}",
                fix="Give the ids of the tokens that open and close the thinking, or take another scope.",
            )
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) < float("inf"):
            raise ConfigError(f"{where}.strength", "must be a finite number", got=repr(strength))
        if sae.training:
            fix = "Call sae.eval() first."
            raise UnsupportedError(where, "the SAE is in training mode, where it looks across a batch", fix=fix)
        sae._require_ready()
        self.sae, self.rows, self.by_row = sae, rows, by_row
        self.scope = cast(Scope, scope)
        self.keep_error, self.where, self.left_out = keep_error, where, left_out
        opens, closes = thinking_tokens or (-1, -1)
        self.thinking_tokens = (opens, closes)
        self.reads, self.writes = sites_of(model, sae, hookpoint, where)
        self.table = table_of(rows, float(strength))
        self.empty = keep_error and (not strength or not len(self.table.latents))

    @property
    def needs_forward(self) -> bool:
        by_token = bool(self.left_out.tokens) or self.left_out.positions is not None
        return self.by_row or self.scope != "all" or by_token


def _attach(model: nn.Module, plans: Sequence[_Plan]) -> Intervention:
    plans = [plan for plan in plans if not plan.empty]
    if not plans:
        return attach([])
    decoder = decoder_of(model, [point.path for plan in plans for point in (plan.reads, plan.writes)])
    watcher = _Watcher(plans)

    def attachments() -> list[Attachment]:
        tracker = stack_on(decoder, DecoderHook) or DecoderHook()
        found = [Attachment(decoder, tracker, watcher)]
        told = watcher.needs_phases or watcher.needs_rows or watcher.needs_places or watcher.thinking_tokens
        if told or any(plan.left_out.tokens for plan in plans):  # a decoder may be given embeddings, without the ids
            found += assisted_decoding_hooks(model, decoder, tracker, watcher)
        places: list[tuple[Hookpoint, AtHookpoint]] = []
        for plan in plans:
            reader = None
            if plan.reads.name != plan.writes.name:
                reader = _Reader()
                places.append((plan.reads, reader))
                watcher.expect(plan.reads.name, reader)
            writer = _Writer(plan, tracker, reader)
            places.append((plan.writes, writer))
            watcher.expect(plan.writes.name, writer)
        watcher.why_stopped = partial(why_stopped, model)
        return found + attachments_at(places)

    return attach(attachments)


class _Watcher(DecoderParticipant):
    def __init__(self, plans: Sequence[_Plan]) -> None:
        super().__init__()
        self.needs_passes = any(plan.needs_forward for plan in plans)
        self.needs_phases = any(plan.scope in ("prompt", "generation") for plan in plans)
        self.needs_places = any(plan.left_out.positions is not None for plan in plans)
        self.thinking_tokens = frozenset(
            plan.thinking_tokens for plan in plans if plan.scope in ("thinking", "answer")
        )
        self._by_row = [plan for plan in plans if plan.by_row]
        self.needs_rows = any(row != plan.rows[0] for plan in self._by_row for row in plan.rows)

    def on_forward(self, forward: Forward) -> None:
        self.on_trace(forward)
        if not self._by_row:
            return
        if self.needs_rows:
            forward.check_rows("steer.edits")
        if forward.moved is None:
            return
        for plan in self._by_row:
            for row, source in enumerate(forward.moved.tolist()):
                if source < 0 or plan.rows[source] != plan.rows[row]:
                    raise UnsupportedError(
                        "steer.edits",
                        f"the sequence in row {row} of the batch came there from a row with other edits, as beams do",
                        expected="every sequence in a row with its own edits",
                        fix="Give the beams of one prompt the same edits, or steer one way at a time.",
                    )

    def on_trace(self, forward: Forward) -> None:
        for plan in self._by_row:
            if forward.batch != len(plan.rows):
                raise ConfigError(
                    "steer.edits",
                    "one dict for each row of the batch, and the batch is another size",
                    got=forward.batch,
                    expected=len(plan.rows),
                    fix="Give as many as rows; with num_return_sequences or beams, repeat each as often.",
                )

    def check_alive(self) -> None:
        if not self.active:
            return
        silent = [name for name, participant in self._expected.items() if not participant.ran]
        if silent and self._proven:
            self.check_stopped(silent)
        elif silent:
            raise LivenessError(
                silent[0],
                "did not run in the forward pass, so that nothing was changed",
                expected="a module that the model calls in every pass",
                fix="Take another hookpoint, load without fused kernels, or do not compile layers by themselves.",
            )
        self._proven = True


class _Reader(AtHookpoint):
    """Keeps a transcoder's input until it writes, in the thread that runs the pass."""

    def __init__(self) -> None:
        self._here = threading.local()

    def apply(self, activations: Tensor) -> None:
        self._here.seen = activations

    def take(self, rows: int, where: str) -> Tensor:
        seen: Tensor | None = getattr(self._here, "seen", None)
        self._here.seen = None
        if seen is None or seen.shape[:-1].numel() != rows:
            raise UnsupportedError(
                where,
                "a transcoder's input did not come before its output, with a row for each token",
                got="nothing" if seen is None else tuple(seen.shape),
                expected=f"{rows} rows",
            )
        return seen.reshape(rows, -1)


class _Writer(AtHookpoint):
    """Replaces activations by a reconstruction, or by changed latents."""

    def __init__(self, plan: _Plan, tracker: DecoderHook, reader: _Reader | None) -> None:
        self.plan, self.tracker, self.reader = plan, tracker, reader
        self._tables: dict[torch.device, EditTable] = {}

    def apply(self, activations: Tensor) -> Tensor | None:
        plan = self.plan
        rows = activations.reshape(-1, activations.shape[-1])
        inputs = rows if self.reader is None else self.reader.take(len(rows), plan.writes.name)
        forward = self._forward(len(rows)) if plan.needs_forward else None
        mask = None if forward is None else self._tokens(forward)
        if mask is False:
            return None
        # Values that are not finite, as at padding that attends to nothing, are not changed.
        kept = inputs.detach().isfinite().all(1)
        for part in (mask, plan.left_out.kept(forward, inputs)):
            if isinstance(part, Tensor):
                kept = kept & part.to(kept.device)
        chosen = kept.nonzero().squeeze(1)
        if not len(chosen):
            return None
        row_of = None
        if plan.by_row and forward is not None:
            row_of = (chosen // forward.length).to(plan.sae.W_dec.device)
        new = self._changed(inputs[chosen], rows[chosen], row_of)
        return rows.index_copy(0, chosen, new).reshape(activations.shape)

    def _forward(self, rows: int) -> Forward:
        forward = self.tracker.forward_of(rows)
        if forward is None:
            raise UnsupportedError(
                self.plan.where,
                "a module ran outside the model's forward, so the phase of its tokens is unknown",
                got=f"scope {self.plan.scope!r}" + (", edits by row" if self.plan.by_row else ""),
                expected="scope 'all' and edits for all rows",
                fix="Call the model itself rather than its parts.",
            )
        return forward

    def _tokens(self, forward: Forward) -> Tensor | None | Literal[False]:
        scope = self.plan.scope
        if scope == "all":
            return None
        if scope == "thinking" or scope == "answer":
            return forward.tokens_in(scope, self.plan.thinking_tokens)
        return forward.tokens_of(scope) if scope in forward.phases else False

    def _changed(self, inputs: Tensor, outputs: Tensor, row_of: Tensor | None) -> Tensor:
        sae, device = self.plan.sae, self.plan.sae.W_dec.device
        tokens = sae._tokens(inputs.to(device), None)
        if outputs.shape[1] != sae.config.decoder_size:
            raise DataError(
                self.plan.writes.name,
                "is of another width than the SAE",
                got=outputs.shape[1],
                expected=sae.config.decoder_size,
            )
        latents = sae._encode(tokens).latents
        sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
        change = self._change(sparse, row_of)
        added = None
        if change is not None:
            dictionary = dictionary_rows(sae, self._table.latents)
            added = in_blocks(change, lambda block: block @ dictionary)
        if added is not None and (scale := sae._restored_scale(tokens.values)) is not None:
            added = added * scale
        if self.plan.keep_error:
            assert change is not None
            assert added is not None
            given = outputs.to(device)
            touched = (change != 0).any(1, keepdim=True)
            new = torch.where(touched, given + added.to(given.dtype), given)
        else:
            new = sae._decode(sparse, tokens.values)
            new = new if added is None else new + added
        return new.to(outputs.device, outputs.dtype)

    def _change(self, latents: SparseLatents, row_of: Tensor | None) -> Tensor | None:
        """The changes of the edited latents, `(tokens, edited)`."""
        table = self._table
        if not len(table.latents):
            return None
        place = torch.full((latents.pattern.num_columns,), -1, device=table.latents.device)
        place[table.latents] = torch.arange(len(table.latents), device=place.device)
        columns = place[latents.pattern.columns]
        edited = columns >= 0
        values = latents.values.new_zeros(latents.pattern.num_rows, len(table.latents))
        values = values.index_put((latents.pattern.rows[edited], columns[edited]), latents.values[edited])
        return table.change(values, row_of)

    @property
    def _table(self) -> EditTable:
        device = self.plan.sae.W_dec.device
        if device not in self._tables:
            self._tables[device] = self.plan.table.to(device)
        return self._tables[device]


def dictionary_rows(sae: SAEModel, latents: Tensor) -> Tensor:
    """Return the dictionary rows that latents are multiplied by on decoding, `(latents, width)`.

    Args:
        sae ([`SAEModel`]): The SAE.
        latents (`torch.Tensor` of shape `(latents,)`, int64): Which.
    """
    rows = sae.W_dec[latents]
    if isinstance(sae, SelectiveSAEModel) and (scale := sae._scale()) is not None:
        lengths = scale[latents]
        rows = rows / torch.where(lengths > 0, lengths, 1.0)[:, None]
    return rows
