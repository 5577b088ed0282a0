"""`apply_mote`: attaches a `MoTEConfig` to a live model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.hooks import Intervention, attach
from hf_mote.mote.checks import SiteEditor, check_against_model, check_together
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import gain_at
from hf_mote.passes.forward import DecoderParticipant, Forward, all_of
from hf_mote.routing.router_hook import attach_to_routers
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite

__all__ = ["apply_mote", "attach_config", "edit_of", "load_config", "targets_layer"]


def apply_mote(
    model: nn.Module,
    config: MoTEConfig | str | os.PathLike[str] | Sequence[MoTEConfig | str | None],
    *,
    allow_other_weights: bool = False,
) -> Intervention:
    """Attach a config to a model and return the handle.

    The model stays the same object: no weight, key, dtype or config of it changes, and removing the handle restores
    bit-identical outputs. Several interventions on one model are merged into one re-selection per router.

    An intervention belongs to the model, whichever thread attached it: threads that share a model share its patches,
    and each needs a copy of the model for a config of its own. A model spread over processes is patched in each.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model of transformers, bare or wrapped.
        config (`MoTEConfig`, `str`, `os.PathLike` or a list of these):
            A config, the folder or file it was saved in, or the Hub repository it was pushed to. A list holds one for
            each row of the batch, `None` for rows that stay untouched.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Apply it to a model of the same type, layers, experts and top-k with other weights, as a fine-tune of the
            one it was made for, or a config that is marked as unverified. The handle and its reports then state this.

    Returns:
        [`Intervention`]: usable bare (`.remove()`) or in a `with` block. A config without targets or with strength 0
        is checked against the model and attaches nothing.

    Raises:
        [`ModelMismatchError`]: if a config does not fit the model, alone or together with what is attached already.
        [`RouterContractError`]: if a router fails its self-test. Nothing is attached then.
        [`LivenessError`]: by the first forward pass, if a hooked router did not run in it.

    Example:

    ```python
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import MoTEConfig, apply_mote

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config).eval()
    tokens = torch.tensor([[1, 2, 3]])
    before = model(tokens).logits
    with apply_mote(model, MoTEConfig.for_model(model, suppress=[[0, 1], [1, 3]])):
        patched = model(tokens).logits
    assert torch.equal(model(tokens).logits, before)
    ```
    """
    return attach_config(RoutedModel(model), config, allow_other_weights=allow_other_weights)


def attach_config(
    routed: RoutedModel,
    config: MoTEConfig | str | os.PathLike[str] | Sequence[MoTEConfig | str | None],
    *,
    allow_other_weights: bool = False,
) -> Intervention:
    """As [`apply_mote`], for a model whose routers were found.

    Args:
        routed (`RoutedModel`): The model with its routers.
        config (`MoTEConfig`, `str`, `os.PathLike` or a list of these): As in [`apply_mote`].
        allow_other_weights (`bool`, *optional*, defaults to `False`): As in [`apply_mote`].
    """
    by_row = isinstance(config, Sequence) and not isinstance(config, str)
    given: Sequence[object] = list(config) if by_row else [config]  # type: ignore[arg-type]
    if by_row and not given:
        raise ConfigError(
            "apply_mote.config", "an empty list", expected="one config or None for each row of the batch"
        )
    configs = [None if entry is None and by_row else load_config(entry) for entry in given]
    if allow_other_weights:
        configs = [entry if entry is None else entry.for_other_weights_of(routed) for entry in configs]
    for entry in configs:
        if entry is not None:
            check_against_model(entry, routed)
    watcher = _RowWatcher(configs if by_row else None)
    present = [entry for entry in configs if entry is not None]
    watcher.needs_places = any(entry.positions is not None for entry in present)
    watcher.needs_passes = by_row or watcher.needs_places or any(entry.scope != "all" for entry in present)
    scoped = any(entry.scope in ("prompt", "generation") for entry in present)
    watcher.needs_phases = scoped or watcher.needs_places
    watcher.thinking_tokens = frozenset(
        (entry.thinking_tokens[0], entry.thinking_tokens[1]) for entry in present if entry.thinking_tokens is not None
    )
    editors: dict[str, _Editors] = {}
    for site in routed.sites:
        parts = [
            _SiteEdit(entry, site, row if by_row else None)
            for row, entry in enumerate(configs)
            if entry is not None and not entry.is_empty and targets_layer(entry, site.layer)
        ]
        if parts:
            editors[site.path] = _Editors(parts)
    if not editors:
        return attach([], _handle_of(configs))

    def editors_of(site: RouterSite) -> _Editors | None:
        mine = editors.get(site.path)
        if mine is not None:  # checked while joining, so that no other config is attached in between
            check_together(site, mine.parts)
        return mine

    return attach_to_routers(routed, watcher, editors_of, handle=_handle_of(configs))


def _handle_of(configs: Sequence[MoTEConfig | None]) -> Intervention:
    """Return an empty handle, with a note if a config is used on weights it was not made for.

    It is made before anything is attached: after that an interrupt could lose the handle.
    """
    handle = Intervention()
    notes = [entry.on_other_weights for entry in configs if entry is not None]
    handle.note = "; ".join(dict.fromkeys(note for note in notes if note is not None))
    return handle


class _SiteEdit:
    """One config's share in one router."""

    def __init__(self, config: MoTEConfig, site: RouterSite, row: int | None) -> None:
        self.config = config
        self.row = row
        self.scope = config.scope
        self.positions = config.positions
        opens, closes = config.thinking_tokens or (-1, -1)
        self.thinking_tokens = (opens, closes)
        self.suppressed = {expert for layer, expert in config.suppress if layer == site.layer}
        self.stimulated = {expert for layer, expert in config.stimulate if layer == site.layer}
        self.scaled = {expert for layer, expert, _ in config.gain if layer == site.layer}
        self.rerouted = config.suppress_mode == "reroute"
        self.edit = edit_of(config, site)
        self._on_device: dict[torch.device, RoutingEdit] = {}

    @property
    def everywhere(self) -> bool:
        """Whether it is meant for every token of every pass."""
        return self.scope == "all" and self.row is None and self.positions is None

    def on(self, device: torch.device) -> RoutingEdit:
        if device not in self._on_device:
            self._on_device[device] = self.edit.to(device)
        return self._on_device[device]

    def tokens(self, forward: Forward | None) -> Tensor | None | bool:
        """Rows in its scope: a mask, `None` for all, `False` for none in this pass."""
        if self.everywhere:
            return None
        if forward is None:
            raise UnsupportedError(
                "apply_mote",
                "a router ran outside the model's forward, so the phase of its tokens is unknown",
                got=f"scope {self.scope!r}"
                + (", configs by row" if self.row is not None else "")
                + (", positions" if self.positions is not None else ""),
                expected="scope 'all' and one config",
                fix="Call the model itself rather than its parts.",
            )
        mask: Tensor | None = None
        if self.scope == "thinking" or self.scope == "answer":
            mask = forward.tokens_in(self.scope, self.thinking_tokens)
        elif self.scope != "all":
            if self.scope not in forward.phases:
                return False
            mask = forward.tokens_of(self.scope)
        if self.positions is not None:
            if self.positions[-1] < 0 and "prompt" not in forward.phases:
                return False
            mask = all_of(mask, forward.tokens_at(self.positions))
        if self.row is not None:
            mine = torch.zeros(forward.batch, forward.length, dtype=torch.bool, device=forward.device)
            mine[self.row] = True
            mask = mine.view(-1) if mask is None else mask & mine.view(-1)
        return mask


class _Editors(SiteEditor):
    """All configs of one intervention that touch one router."""

    parts: list[_SiteEdit]

    def __init__(self, parts: list[_SiteEdit]) -> None:
        self.parts = parts
        described = [[part.row, part.config.to_dict()] for part in parts]
        self.digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        if all(part.everywhere for part in parts):
            self.always = tuple(part.edit for part in parts)

    def edits(self, forward: Forward | None, device: torch.device) -> list[tuple[RoutingEdit, Tensor | None]]:
        found: list[tuple[RoutingEdit, Tensor | None]] = []
        for part in self.parts:
            tokens = part.tokens(forward)
            if tokens is not False:
                found.append((part.on(device), tokens if isinstance(tokens, Tensor) else None))
        return found


class _RowWatcher(DecoderParticipant):
    def __init__(self, rows: Sequence[MoTEConfig | None] | None) -> None:
        super().__init__()
        self.rows = rows
        self.needs_rows = rows is not None and any(config != rows[0] for config in rows)

    def on_forward(self, forward: Forward) -> None:
        self.on_trace(forward)
        if self.rows is None:
            return
        if self.needs_rows:
            forward.check_rows("apply_mote.config")
        if forward.moved is None:
            return
        for row, source in enumerate(forward.moved.tolist()):
            if source < 0 or self.rows[source] != self.rows[row]:
                raise UnsupportedError(
                    "apply_mote.config",
                    f"the sequence in row {row} of the batch came there from a row with another config, as beams do",
                    expected="every sequence in a row with its own config",
                    fix="Give the beams of one prompt the same config, or apply one config at a time.",
                )

    def on_trace(self, forward: Forward) -> None:
        if self.rows is not None and forward.batch != len(self.rows):
            raise ConfigError(
                "apply_mote.config",
                "one config for each row of the batch, and the batch has another size",
                got=forward.batch,
                expected=len(self.rows),
                fix="Give as many configs as rows; with num_return_sequences or beams, repeat each as often.",
            )
        if self.needs_rows and torch.compiler.is_compiling():
            raise UnsupportedError(
                "apply_mote.config",
                "a compiled graph cannot see whether sequences stay in their rows",
                got="different configs by row",
                expected="one config, or a model that is not compiled",
                fix="Do not compile the model; generate takes disable_compile=True.",
            )


def load_config(config: object) -> MoTEConfig:
    """Return a config that is given as an object, a folder, a file or a Hub id.

    Args:
        config (`object`): What was given.

    Raises:
        [`ConfigError`]: if it is not one of these.
    """
    if isinstance(config, MoTEConfig):
        return config
    if isinstance(config, str | os.PathLike):
        return MoTEConfig.from_pretrained(config)
    raise ConfigError(
        "apply_mote.config",
        "not a config",
        got=type(config).__name__,
        expected="a MoTEConfig, a folder, a Hub id, or a list of these",
    )


def targets_layer(config: MoTEConfig, layer: int) -> bool:
    """Return whether a config names an expert of a layer."""
    return any(target == layer for target, _ in config.targets)


def edit_of(config: MoTEConfig, site: RouterSite) -> RoutingEdit:
    """Return a config's share in one router, as `(experts,)` tensors on the CPU.

    Args:
        config (`MoTEConfig`): The config; its scope is left to the caller.
        site (`RouterSite`): The router.
    """

    def vector(value: float, targets: list[list[int]], neutral: float) -> Tensor | None:
        mine = [expert for layer, expert in targets if layer == site.layer]
        if not mine:
            return None
        values = torch.full((site.num_experts,), neutral, dtype=torch.float32)
        values[mine] = value
        return values

    bias: Tensor | None = None
    for layer, expert, value in config.bias:
        if layer == site.layer:
            bias = torch.zeros(site.num_experts, dtype=torch.float32) if bias is None else bias
            bias[expert] = value * config.strength
    left = vector(1.0 - config.strength, config.suppress, 1.0)
    gain = left if config.suppress_mode == "zero" else None
    for layer, expert, value in config.gain:
        factor = gain_at(value, config.strength)
        if layer == site.layer and factor != 1:
            gain = torch.ones(site.num_experts, dtype=torch.float32) if gain is None else gain
            gain[expert] = factor
    forced = vector(1.0, config.stimulate, 0.0)
    weight = config.stimulate_weight
    return RoutingEdit(
        drop_share=left if config.suppress_mode == "drop" else None,
        keeps_all_or_nothing=config.strength == 1,
        gain=gain,
        banned=left < 1 if config.suppress_mode == "reroute" and left is not None else None,
        forced=None if forced is None else forced.bool(),
        forced_to_max=forced.bool() if forced is not None and weight == "max" else None,
        forced_weight=vector(weight, config.stimulate, float("nan")) if isinstance(weight, float) else None,
        forced_gain=vector(config.strength, config.stimulate, 1.0) if config.strength != 1 else None,
        logit_bias=bias if config.bias_on == "logits" else None,
        selection_bias=bias if config.bias_on == "selection" else None,
    )
