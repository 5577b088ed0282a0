"""Profiles as tables, and the routing of a batch in which every token may follow another profile; torch alone.

A worker holds one [`ProfileTables`]. Row 0 of each table changes nothing; a token whose row is 0 keeps the engine's
own routing, bit for bit. The rules are those of `apply_mote`: the same edits, the same `select` and `reweigh`.

An eager engine reads which profiles a batch holds: layers that none of them changes cost nothing, and one profile for
all tokens is applied without tables. A compiled engine, or one that replays graphs, cannot read this, so there every
layer that some profile changes uses its tables, which hold only the fields that the profiles use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.mote.patch import edit_of, targets_layer
from hf_mote.routing.rules.edits import NEUTRAL, RoutingEdit, present_in
from hf_mote.routing.rules.selection import BoundRule, Routing, reweigh, select
from hf_mote.routing.sites.site import RouterSite
from hf_mote.serving.settings import MODES, Profile

__all__ = ["LayerRouting", "ProfileTables", "Span"]

PHASES = ("prompt", "generation")
# Rows times experts. Below, the cost is the number of operations, not their size.
_FEW = 2**14
_SHARES = {"drop_share", "gain"}


class Span(NamedTuple):
    """Tokens of one request in a batch, one after the other.

    Attributes:
        length (`int`): How many.
        prompt (`int`): How many of them, from the first, are prompt.
        digest (`str`, *optional*): The request's profile.
        label (`int`, *optional*): Its recording's slot.
        seen (`int`): How many, from the first, were recorded before and are run again.
    """

    length: int
    prompt: int
    digest: str | None = None
    label: int | None = None
    seen: int = 0


class _Loaded(NamedTuple):
    row: int
    scope: str
    edits: dict[int, RoutingEdit]


@dataclass(eq=False)
class _Group:
    """Rows of a pass whose profiles are applied to one layer together.

    Attributes:
        names (`tuple[str, ...]`): Fields of an edit that some of these profiles change.
        rows (`torch.Tensor` of shape `(rows,)`, int64): Their places in the pass.
        whole (`bool`): [`RoutingEdit`]'s `keeps_all_or_nothing`.
        kept (`bool`): Whether the edit is kept for the next passes, which is memory.
        edit ([`RoutingEdit`], *optional*): With a row for each of `rows`.
    """

    names: tuple[str, ...]
    rows: Tensor
    whole: bool
    kept: bool
    edit: RoutingEdit | None = None


@dataclass(eq=False)
class LayerRouting:
    """The share of one router in all profiles.

    Attributes:
        site (`RouterSite`): The router, as transformers has it.
        selection (`BoundRule`): Its rule and numbers, without the scale that the engine applies after the experts.
        selection_bias (`torch.Tensor`, *optional*): The engine's own, live.
        scale (`float`): The engine's later factor on the experts' sum.
        tables (`dict[str, torch.Tensor]`): Fields of an edit, `(rows, experts)`.
        counts, weights (`torch.Tensor` of shape `(slots, experts)`, float64): What was recorded; slot 0 is unused.
    """

    site: RouterSite
    selection: BoundRule
    selection_bias: Tensor | None
    scale: float
    tables: dict[str, Tensor]
    counts: Tensor | None = None
    weights: Tensor | None = None


class ProfileTables:
    """All profiles that a worker holds.

    Args:
        layers (`Mapping[int, LayerRouting]`): Routers by absolute decoder layer.
        device (`torch.device`): Where they run.
        max_tokens (`int`): Most tokens of a batch.
        max_profiles (`int`): Most profiles.
        record (`int`): Most recordings.
        fields (`set[str]`, *optional*): Fields for which tables are made at the start; `None` for an eager
            engine, whose tables grow as profiles need them.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerRouting],
        device: torch.device,
        *,
        max_tokens: int,
        max_profiles: int,
        record: int = 0,
        fields: set[str] | None = None,
        touched: set[int] | None = None,
    ) -> None:
        self.layers = dict(layers)
        self.device = device
        self.max_profiles = max_profiles
        self.eager = fields is None
        self.rows = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self.labels = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self.record = record
        self._loaded: dict[str, _Loaded] = {}
        self._used = 0
        self._active: dict[int, list[_Loaded]] = {}
        self._groups: dict[int, list[_Group]] = {}
        self._last_groups: tuple[list[int], dict[int, list[_Group]]] = ([], {})
        self._one: _Loaded | None = None
        self._recording = False
        self._tokens: dict[int, list[int]] = {}
        for number, layer in self.layers.items():
            for name in fields or () if touched is None or number in touched else ():
                layer.tables[name] = self._table(layer, name)
            if record:
                shape = (1 + 2 * record, layer.site.num_experts)
                layer.counts = torch.zeros(shape, dtype=torch.float64, device=device)
                layer.weights = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def digests(self) -> tuple[str, ...]:
        """The loaded profiles."""
        return tuple(self._loaded)

    def load(self, profile: Profile) -> None:
        """Add a profile; an existing one stays.

        Args:
            profile (`Profile`): Checked against the model.

        Raises:
            [`UnsupportedError`]: if there is no room, or the engine's tables lack what it needs.
        """
        if profile.digest in self._loaded:
            return
        config = profile.config
        edits = {
            number: self._scaled(layer, edit_of(config, layer.site))
            for number, layer in self.layers.items()
            if not config.is_empty and targets_layer(config, number)
        }
        free = sorted(set(range(1, self.max_profiles + 1)) - {one.row for one in self._loaded.values()})
        if not free:
            raise UnsupportedError(
                f"profile {profile.name!r}",
                "the engine holds as many profiles as it may",
                got=len(self._loaded),
                fix="Unload one, or start the engine with a larger max_profiles.",
            )
        row = free[0]
        for number, edit in edits.items():
            layer = self.layers[number]
            for name in present_in(edit):
                if name not in layer.tables and not self.eager:
                    modes = [mode for mode, fields in MODES.items() if name in fields and mode in profile.modes]
                    raise UnsupportedError(
                        f"profile {profile.name!r}",
                        f"the engine was compiled without the edits of the profile in layer {number}",
                        got=", ".join(sorted(profile.modes)),
                        expected="the edits of the profiles that the engine was started with",
                        fix=f"Start it with modes=[{', '.join(map(repr, modes[:1]))}], or with enforce_eager.",
                    )
        for number, edit in edits.items():
            layer = self.layers[number]
            for name, value in present_in(edit).items():
                if name not in layer.tables:
                    layer.tables[name] = self._table(layer, name)
                layer.tables[name][row] = value.to(self.device, layer.tables[name].dtype)
        self._last_groups = ([], {})
        on_device = {number: edit.to(self.device) for number, edit in edits.items()}
        self._loaded[profile.digest] = _Loaded(row, config.scope, on_device)

    def unload(self, digest: str) -> None:
        """Remove a profile without running requests; an unknown one is ignored."""
        loaded = self._loaded.pop(digest, None)
        if loaded is None:
            return
        self._last_groups = ([], {})
        for layer in self.layers.values():
            for name, table in layer.tables.items():
                table[loaded.row] = NEUTRAL[name]

    def begin(self, spans: Sequence[Span]) -> None:
        """Set the rows of the next pass.

        Args:
            spans (`Sequence[Span]`): Its requests, in the order of the rows.

        Raises:
            `KeyError`: if a profile is not loaded, which the engine's front must not let happen.
        """
        total = sum(span.length for span in spans)
        rows, labels, place = [0] * total, [0] * total, 0
        followed: dict[str, _Loaded] = {}
        places: dict[int, list[int]] = {}
        for span in spans:
            if span.digest is not None:
                loaded = self._loaded[span.digest]
                start = place + (span.prompt if loaded.scope == "generation" else 0)
                end = place + (span.prompt if loaded.scope == "prompt" else span.length)
                if loaded.edits and end > start:
                    rows[start:end] = [loaded.row] * (end - start)
                    followed[span.digest] = loaded
                    places.setdefault(loaded.row, []).extend(range(start, end))
            if span.label is not None:
                for token in range(span.seen, span.length):
                    labels[place + token] = 1 + 2 * span.label + (token >= span.prompt)
                tokens = self._tokens.setdefault(span.label, [0, 0])
                tokens[0] += max(span.prompt - span.seen, 0)
                tokens[1] += span.length - max(span.prompt, span.seen)
            place += span.length
        active: dict[int, list[_Loaded]] = {}
        for loaded in followed.values():
            for number in loaded.edits:
                active.setdefault(number, []).append(loaded)
        self._one = next(iter(followed.values())) if len(followed) == 1 and all(rows) else None
        self._active = active
        self._groups = self._grouped_as_before(active, places, rows) if self.eager and self._one is None else {}
        self._recording = any(labels)
        for buffer, values in ((self.rows, rows), (self.labels, labels)):
            used = max(total, self._used)
            buffer[:used] = torch.tensor(values + [0] * (used - total), dtype=torch.int64)
        self._used = total

    def end(self) -> None:
        """Called when the pass is over; rows outside of passes belong to no request."""
        self._active, self._groups, self._one, self._recording = {}, {}, None, False
        self.rows[: self._used] = 0
        self.labels[: self._used] = 0
        self._used = 0

    def route(self, layer: LayerRouting, logits: Tensor, weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the routing of a pass in one router, under the profiles that its rows follow.

        Args:
            layer (`LayerRouting`): The router.
            logits (`torch.Tensor` of shape `(tokens, experts)`): Its logits.
            weights (`torch.Tensor` of shape `(tokens, top_k)`): The engine's own weights.
            indices (`torch.Tensor` of shape `(tokens, top_k)`): The engine's own choice.

        Returns:
            `tuple`: weights and experts in the dtypes of the engine's.

        Raises:
            [`RouterContractError`]: if the router sees fewer rows than the pass has.
        """
        if self.eager:
            active = self._active.get(layer.site.layer)
            if (active or self._recording) and logits.shape[0] < self._used:
                raise RouterContractError(
                    layer.site.path,
                    "a router receives only some of the rows of a pass, and which ones is unknown",
                    got=logits.shape[0],
                    expected=self._used,
                )
            if active and self._one is not None:
                weights, indices = self._under(layer, logits, weights, indices, active[0].edits[layer.site.layer])
            elif active:
                weights, indices = self._by_group(layer, logits, weights, indices)
            if self._recording:
                self._count(layer, weights, indices)
            return weights, indices
        if layer.tables:
            weights, indices = self._by_row(layer, logits, weights, indices, set(layer.tables))
        if self.record:
            self._count(layer, weights, indices)
        return weights, indices

    def take(self, label: int) -> dict[str, Any]:
        """Return the recording of a slot, and empty it.

        Args:
            label (`int`): The slot.

        Returns:
            `dict`: `tokens`, of prompt and generation; `layers`: by layer, counts and weights, each for prompt and
            generation, each `(experts,)` numbers. As in `record_routing`, an expert with weight 0 by a
            profile is not counted.
        """
        found: dict[str, Any] = {}
        for number, layer in self.layers.items():
            if layer.counts is None or layer.weights is None:
                continue
            place = slice(1 + 2 * label, 3 + 2 * label)
            found[str(number)] = [layer.counts[place].tolist(), layer.weights[place].tolist()]
            layer.counts[place] = 0
            layer.weights[place] = 0
        return {"tokens": self._tokens.pop(label, [0, 0]), "layers": found}

    def _table(self, layer: LayerRouting, name: str) -> Tensor:
        neutral = NEUTRAL[name]
        shape = (1 + self.max_profiles, layer.site.num_experts)
        dtype = torch.bool if isinstance(neutral, bool) else torch.float32
        return torch.full(shape, neutral, dtype=dtype, device=self.device)

    @staticmethod
    def _scaled(layer: LayerRouting, edit: RoutingEdit) -> RoutingEdit:
        """Scales weights given as numbers: the engine applies a part of the model's scale afterwards."""
        if edit.forced_weight is None or layer.scale == 1:
            return edit
        return replace(edit, forced_weight=edit.forced_weight / layer.scale)

    def _grouped_as_before(
        self, active: Mapping[int, Sequence[_Loaded]], places: Mapping[int, Sequence[int]], rows: list[int]
    ) -> dict[int, list[_Group]]:
        """Return the groups of the pass: the last ones, if its rows follow the same profiles, as in decoding."""
        if rows != self._last_groups[0]:
            self._last_groups = (rows, self._grouped(active, places))
        return self._last_groups[1]

    def _grouped(
        self, active: Mapping[int, Sequence[_Loaded]], places: Mapping[int, Sequence[int]]
    ) -> dict[int, list[_Group]]:
        """Return the rows of the pass for each layer, grouped by the fields that their profiles change there.

        In a large pass rows are grouped by equal fields. In a small one, profiles are applied together where this
        leaves every row's result the same, to the last bit.
        """
        tensors: dict[tuple[int, ...], Tensor] = {}
        found: dict[int, list[_Group]] = {}
        for number, followed in active.items():
            experts = self.layers[number].site.num_experts
            few = experts * sum(len(places[one.row]) for one in followed) <= _FEW
            alike: dict[tuple[object, bool], tuple[dict[str, None], list[int]]] = {}
            for one in followed:
                edit = one.edits[number]
                fields = present_in(edit)
                whole = edit.keeps_all_or_nothing or "drop_share" not in fields
                key = (_kind(fields) if few else tuple(fields), whole)
                names, members = alike.setdefault(key, ({}, []))
                names.update(dict.fromkeys(fields))
                members.append(one.row)
            groups = []
            for (_, whole), (names, members) in alike.items():
                if (same := tuple(members)) not in tensors:
                    chosen = [place for row in members for place in places[row]]
                    tensors[same] = torch.tensor(chosen, dtype=torch.int64, device=self.device)
                groups.append(_Group(tuple(names), tensors[same], whole, few))
            found[number] = groups
        return found

    def _by_group(
        self, layer: LayerRouting, logits: Tensor, weights: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        native = (logits, weights, indices)
        for group in self._groups[layer.site.layer]:
            rows, edit = group.rows, group.edit
            if edit is None:
                profiles = self.rows[rows]
                fields: dict[str, Any] = {name: layer.tables[name][profiles] for name in group.names}
                edit = RoutingEdit(**fields, keeps_all_or_nothing=group.whole)
                group.edit = edit if group.kept else None
            their_logits, their_weights, their_indices = (part.index_select(0, rows) for part in native)
            edited = self._under(layer, their_logits, their_weights, their_indices, edit)
            weights = weights.index_copy(0, rows, edited[0])
            if not edit.only_weights:
                indices = indices.index_copy(0, rows, edited[1])
        return weights, indices

    def _by_row(
        self, layer: LayerRouting, logits: Tensor, weights: Tensor, indices: Tensor, names: set[str]
    ) -> tuple[Tensor, Tensor]:
        rows = self.rows[: logits.shape[0]]
        fields: dict[str, Any] = {name: layer.tables[name][rows] for name in sorted(names)}
        edit = RoutingEdit(**fields)
        edited = self._under(layer, logits, weights, indices, edit)
        touched = (rows > 0)[:, None]
        return torch.where(touched, edited[0], weights), torch.where(touched, edited[1], indices)

    @staticmethod
    def _under(
        layer: LayerRouting, logits: Tensor, weights: Tensor, indices: Tensor, edit: RoutingEdit
    ) -> tuple[Tensor, Tensor]:
        if edit.only_weights:
            return reweigh(weights.float(), indices.long(), edit).to(weights.dtype), indices
        routing: Routing = select(logits, layer.selection, layer.selection_bias, edit)
        return routing.weights.to(weights.dtype).contiguous(), routing.indices.to(indices.dtype).contiguous()

    def _count(self, layer: LayerRouting, weights: Tensor, indices: Tensor) -> None:
        if layer.counts is None or layer.weights is None:
            return
        experts = layer.site.num_experts
        places = (self.labels[: indices.shape[0], None] * experts + indices.long()).reshape(-1)
        visited = (weights != 0) | (self.rows[: indices.shape[0]] == 0)[:, None]
        layer.counts.view(-1).index_add_(0, places, visited.double().reshape(-1))
        layer.weights.view(-1).index_add_(0, places, weights.double().reshape(-1) * layer.scale)


def _kind(fields: Mapping[str, Tensor]) -> object:
    """Return the properties that profiles must share to be applied together.

    A neutral field of a row does not change that row, with one exception: where experts are forced, shares
    decide by ranks which expert gives way.
    """
    if fields.keys() <= _SHARES:
        return "shares"
    return tuple(fields) if fields.keys() & _SHARES else "choice"
