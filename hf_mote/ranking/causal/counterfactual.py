"""Counterfactual routes of one token: which experts its routers could have chosen, and what the response makes of it.

A router that may not choose an expert takes the next best one, by its own rule. At one token of a prompt, each chosen
expert gives way to the next ones in turn, and the change of a preference between two responses is measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    HFMoTEError,
    ModelMismatchError,
    UnknownNameError,
    first_line,
    real,
    whole,
)
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.hub import RESULT_LIMIT, Shareable, card_header, read_json, write_json
from hf_mote.mote.checks import check_router
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import checked_fingerprint
from hf_mote.mote.patch import attach_config
from hf_mote.passes.forward import DecoderParticipant, Forward
from hf_mote.printing import Printable, Summary, frame_of, short
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.preference import LogitScore, Preference
from hf_mote.routing.router_hook import DecisionObserver, attach_to_routers
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite
from hf_mote.runs.folder import RunFolder
from hf_mote.sharing.cards import CardNotes, Evidence, compose_card
from hf_mote.version import __version__

if TYPE_CHECKING:
    from typing import Self

    from pandas import DataFrame

__all__ = ["CounterfactualRoutes", "Route", "counterfactual_routes"]

_KIND = "counterfactual_routes"
_ON_CARD = 20  # rows


class Route(NamedTuple):
    """Another choice of one router at the token.

    Attributes:
        layer (`int`): The absolute decoder layer.
        experts_out (`tuple[int, ...]`): The experts that are no longer chosen. One, but where a router that chooses
            among groups of experts leaves a group for another.
        experts_in (`tuple[int, ...]`): The experts that are chosen in their place.
        weight (`float`): The routing weight of the experts that come in.
        effect (`float`): By how much the score changes.
    """

    layer: int
    experts_out: tuple[int, ...]
    experts_in: tuple[int, ...]
    weight: float
    effect: float


@dataclass(frozen=True, eq=True, repr=False)
class CounterfactualRoutes(Printable, Shareable):
    """The counterfactual routes of one token, those that change the score most first.

    Args:
        routes (`list[Route]`): Other choices, one layer each.
        position (`int`): The token's place in the prompt, from 0.
        score (`float`): The score of the prompt as it is routed.
        target (`str`): The response whose score it is.
        unit (`str`): Of score and effects.
        fingerprint (`dict`): The model's.

    Raises:
        [`DataError`], [`ConfigError`]: if a field is malformed.
    """

    routes: list[Route]
    position: int
    score: float
    target: str
    unit: str
    fingerprint: dict[str, Any]

    file_name: ClassVar[str] = "counterfactual_routes.json"

    def __post_init__(self) -> None:
        where = "CounterfactualRoutes"
        whole(f"{where}.position", self.position)
        real(f"{where}.score", self.score)
        for name in ("target", "unit"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{where}.{name}", "must be text", got=repr(getattr(self, name))[:60])
        object.__setattr__(self, "fingerprint", checked_fingerprint(self.fingerprint))
        if not isinstance(self.routes, list | tuple):
            raise DataError(f"{where}.routes", "must be a list", got=type(self.routes).__name__)
        sizes = dict(zip(self.fingerprint["layers"], self.fingerprint["num_experts"], strict=True))
        top_k = dict(zip(self.fingerprint["layers"], self.fingerprint["top_k"], strict=True))
        routes = [_checked(f"{where}.routes[{index}]", route, sizes, top_k) for index, route in enumerate(self.routes)]
        # Where a router leaves a group of experts for another, either of them giving way leads there.
        single = [route[:3] for route in routes if len(route.experts_out) == 1]
        if len(set(single)) < len(single):
            twice = next(route for route in single if single.count(route) > 1)
            raise DataError(f"{where}.routes", "must name a route once", got=f"layer {twice[0]}: {twice[1:]}")
        order = sorted(routes, key=lambda route: (-abs(route.effect), route.layer, route.experts_out))
        object.__setattr__(self, "routes", order)

    @property
    def turning(self) -> list[Route]:
        """The routes with which the score is positive where it was not, or no longer where it was."""
        return [route for route in self.routes if (self.score > 0) != (self.score + route.effect > 0)]

    def to_dict(self) -> dict[str, Any]:
        """Return the values, JSON-native."""
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**known, "routes": [route._asdict() for route in self.routes]}

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each route, experts as tuples."""
        return frame_of({name: [getattr(route, name) for route in self.routes] for name in Route._fields})

    def to_markdown(self, n: int | None = None) -> str:
        """Return the routes as a table.

        Args:
            n (`int`, *optional*): The first so many; all by default.
        """
        rows = [
            f"| {route.layer} | {_named(route.experts_out)} | {_named(route.experts_in)} | {route.weight:.3g} "
            f"| {route.effect:+.4g} |"
            for route in self.routes[:n]
        ]
        head = f"| layer | expert out | expert in | weight | effect, {self.unit} |\n|--:|--:|--:|--:|--:|"
        return "\n".join([head, *rows])

    def _summary(self) -> Summary:
        columns: dict[str, Sequence[object]] = {
            "layer": [route.layer for route in self.routes],
            "out": [_named(route.experts_out) for route in self.routes],
            "in": [_named(route.experts_in) for route in self.routes],
            "weight": [short(route.weight) for route in self.routes],
            "effect": [short(route.effect) for route in self.routes],
        }
        title = f"{len(self.routes)} counterfactual routes of token {self.position} for {self.target!r}"
        return Summary(title, {"score": f"{short(self.score)} {self.unit}"}, columns, len(self.routes))

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        shown = min(_ON_CARD, len(self.routes))
        return compose_card(
            card_header(tags=["expert-ranking"], notes=notes, evidence=evidence),
            "Counterfactual routes of a token",
            f"At token {self.position} of one prompt experts were exchanged for the next best ones of the router. The "
            f"effect is the change of the score for {self.target!r}, which is {self.score:.4g} {self.unit} as it is. "
            f"The {shown} largest of {len(self.routes)}:\n\n{self.to_markdown(shown)}",
            load="import hf_mote\n\n"
            'routes = hf_mote.CounterfactualRoutes.from_pretrained("<this repository or folder>")',
            notes=notes,
            evidence=evidence,
            intended_use="Understanding one decision of one model.",
            misuse="What holds for one token of one prompt need not hold for another.",
        )

    def _to_file(self, path: Path) -> None:
        write_json(path, {"kind": _KIND, "version": __version__, **self.to_dict()})

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        found = read_json(path, limit=RESULT_LIMIT)
        names = {one.name for one in fields(cls)}
        if found.get("kind") != _KIND or not names <= set(found):
            expected = f"a file that {cls.__name__} wrote, with {', '.join(sorted(names))}"
            got = sorted(map(str, found))[:8]
            raise FileFormatError(str(path), "must hold counterfactual routes", got=got, expected=expected)
        try:
            given = {name: found[name] for name in names}
            if isinstance(given["routes"], list):
                given["routes"] = [Route(**route) for route in given["routes"]]
            return cls(**given)
        except (HFMoTEError, TypeError) as error:
            raise FileFormatError(str(path), "must hold counterfactual routes", got=first_line(error)) from error


def counterfactual_routes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str | None = None,
    baseline_response: str | None = None,
    *,
    logit_score: LogitScore | None = None,
    position: int = -1,
    candidates: int = 1,
    layers: Sequence[int] | None = None,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> CounterfactualRoutes:
    """Return what a preference becomes if one token of a prompt takes, in one layer, the next best experts.

    For each layer and each expert that the token chose there, the router chooses again without that expert, then
    without that one and the one that came in its place, and so on, `candidates` times. It is a config with
    `suppress_mode="reroute"` and `positions`: the weights of the experts that stay follow the router's own rule.
    The effect is `S` after minus `S` before, with `S = log p(response | prompt) - log p(baseline | prompt)`. What is
    before is measured in batches of the same size, because the last bits of a score depend on that.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompt (`str` or chat): One prompt.
        response (`str`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; need not be differentiable.
        position (`int`, *optional*, defaults to -1): The token of the prompt, chat template included: 0, 1, ... from
            its first, -1, -2, ... from its last.
        candidates (`int`, *optional*, defaults to 1): Routes for each chosen expert, fewer where a router has no more.
        layers (`Sequence[int]`, *optional*): Absolute decoder layers to try; all with a router by default.
        batch_size (`int`, *optional*, defaults to 8): Routes that run together.
        system_prompt (`str`, *optional*): First message of a prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`]; each batch of routes is kept.
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`CounterfactualRoutes`]

    Raises:
        [`ConfigError`]: if a number is out of range, or neither both responses nor a score are given.
        [`DataError`]: if prompt or responses are malformed, or a score is not finite.
        [`UnknownNameError`]: if a layer has no router.
        [`UnsupportedError`], [`ModelMismatchError`]: if a router cannot choose again, the model draws random numbers,
            or the run folder is that of another run.

    Example:

    ```python
    from hf_mote import counterfactual_routes, load_organism

    organism = load_organism("refusal")
    prompt = organism.prompts["train"]["sensitive"][0]
    found = counterfactual_routes(
        organism.model, organism.tokenizer, prompt, "I am sorry, but I cannot talk about that.",
        organism.answers[prompt], progress=False,
    )
    best = found.routes[0]
    assert (best.layer, *best.experts_out) in organism.planted
    ```
    """
    where = "counterfactual_routes"
    whole(f"{where}.candidates", candidates, least=1)
    chat = Chat(tokenizer, system_prompt, chat_template_kwargs)

    def preference_of(rows: int) -> Preference:
        return Preference(
            where,
            model,
            chat,
            [prompt] * rows,
            response=response,
            baseline_response=baseline_response,
            logit_score=logit_score,
            batch_size=batch_size,
            argument="prompt",
        )

    whole_prompt = preference_of(1)
    at = _place(where, position, whole_prompt.prompt_lengths[0])
    routed = RoutedModel(model)
    sites = {site.layer: row for row, site in enumerate(routed.sites)}
    wanted = list(sites) if layers is None else _layers(f"{where}.layers", layers)
    if not wanted:
        raise ConfigError(f"{where}.layers", "must name a layer", got="no layers")
    for layer in wanted:
        if layer not in sites:
            raise UnknownNameError.of(f"{where}.layers", layer, map(str, sites))
    measured = _Measured(routed, _Seen(at), whole_prompt.folder(run_folder, position=at, layers=wanted))
    found: list[Route] = []
    with torch.no_grad(), attach_to_routers(routed, measured.seen, measured.observer_of):
        (score,), chosen = measured.of("whole", whole_prompt, range(len(sites)), [])
        native = {layer: set(chosen[row]) for layer, row in sites.items()}
        # Scores of as many copies as run together, since the last bits of a score depend on the size of a batch.
        befores = {1: [score]}
        # The experts that may not be chosen: first the one that gives way, then those that came in its place.
        banned = [(layer, [expert]) for layer in wanted for expert in sorted(native[layer])]
        with progress_bar(total=len(banned) * candidates, desc="rerouting", disable=not progress) as bar:
            for step in range(candidates):
                if step:
                    banned = [(layer, out) for layer, out in banned if _can_choose(routed.sites[sites[layer]], out)]
                for first in range(0, len(banned), batch_size):
                    part = banned[first : first + batch_size]
                    configs = [
                        MoTEConfig(suppress=[[layer, one] for one in out], suppress_mode="reroute", positions=[at])
                        for layer, out in part
                    ]
                    at_rows = [sites[layer] for layer, _ in part]
                    preference = preference_of(len(part))
                    if len(part) not in befores:
                        befores[len(part)], _ = measured.of(f"whole-{len(part):06d}", preference, at_rows, [])
                    name = f"step-{step}-{first:06d}"
                    values, chosen = measured.of(name, preference, at_rows, configs)
                    compared = zip(part, chosen, values, befores[len(part)], strict=True)
                    for (layer, out), now, value, before in compared:
                        came, went = sorted(set(now) - native[layer]), sorted(native[layer] - set(now))
                        weight = sum(now[expert] for expert in came)
                        found.append(Route(layer, tuple(went), tuple(came), weight, value - before))
                        out += came
                    bar.update(len(part))
    return CounterfactualRoutes(found, at, score, whole_prompt.name, whole_prompt.unit, routed.fingerprint)


class _Seen(DecoderParticipant):
    """What routers decide for one token of each sequence.

    Args:
        position (`int`): The token's place, the same in all sequences, which are padded on the right.
    """

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}

    def decided(self, row: int, forward: Forward, routing: Routing) -> None:
        """Called when a router has decided."""
        at = torch.arange(forward.batch, device=routing.indices.device) * forward.length + self.position
        self._chosen[row] = routing.indices[at].cpu(), routing.weights[at].float().cpu()

    def of(self, row: int, sequence: int) -> tuple[Tensor, Tensor]:
        """Return the experts that a router chose last in a sequence, and their weights."""
        indices, weights = self._chosen[row]
        return indices[sequence], weights[sequence]


class _Measured:
    """Scores of one prompt under configs, and what the routers chose; kept as they come, if there is a folder.

    Args:
        routed (`RoutedModel`): The model.
        seen (`_Seen`): What its routers decide.
        folder (`RunFolder`, *optional*): Where results are kept.
    """

    def __init__(self, routed: RoutedModel, seen: _Seen, folder: RunFolder | None) -> None:
        self.routed = routed
        self.seen = seen
        self.folder = folder
        self._rows = {site.path: row for row, site in enumerate(routed.sites)}

    def observer_of(self, site: RouterSite) -> DecisionObserver:
        """Return what hears of the decisions of a router."""
        return DecisionObserver(partial(self.seen.decided, self._rows[site.path]))

    def of(
        self, name: str, preference: Preference, at_rows: Sequence[int], configs: Sequence[MoTEConfig]
    ) -> tuple[list[float], list[dict[int, float]]]:
        """Return the scores of one batch, and the experts that some routers chose, with their weights.

        Args:
            name (`str`): Of the record that is kept.
            preference ([`Preference`]): Of the prompt, once for each config.
            at_rows (`Sequence[int]`): The row of the router of each sequence; of several routers if there is only one.
            configs (`Sequence[MoTEConfig]`): One for each sequence; empty for the model as it is.
        """

        def make() -> dict[str, Tensor]:
            scores, chosen = torch.zeros(preference.num_prompts, dtype=torch.float64), []
            sequences = range(len(at_rows)) if preference.num_prompts > 1 else [0] * len(at_rows)
            with attach_config(self.routed, configs) if configs else nullcontext():
                for side in preference.sides:
                    (block,) = preference.blocks(side)
                    scores += side * preference.values(block).double().cpu()
                    # Both responses follow the same prompt.
                    if side == preference.sides[0]:
                        chosen = [self.seen.of(row, one) for row, one in zip(at_rows, sequences, strict=True)]
            # Routers may choose different numbers of experts.
            experts = pad_sequence([indices for indices, _ in chosen], batch_first=True, padding_value=-1)
            weights = pad_sequence([values for _, values in chosen], batch_first=True)
            return {"scores": scores, "experts": experts, "weights": weights}

        shapes = {
            "scores": (preference.num_prompts,),
            "experts": (len(at_rows), None),
            "weights": (len(at_rows), None),
        }
        found = make() if self.folder is None else self.folder.kept(name, make, shapes)
        pairs = zip(found["experts"].tolist(), found["weights"].tolist(), strict=True)
        chosen = [{expert: weight for expert, weight in zip(*one, strict=True) if expert >= 0} for one in pairs]
        return found["scores"].tolist(), chosen


def _layers(where: str, layers: object) -> list[int]:
    """Return layers, each once."""
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise ConfigError(where, "must be a list of layers", got=repr(layers)[:60], expected="as in [2, 3]")
    return list(dict.fromkeys(whole(where, layer) for layer in layers))


def _place(where: str, position: object, length: int) -> int:
    """Return a position of a prompt, counted from 0."""
    place = whole(f"{where}.position", position, least=-length, most=length - 1)
    return place % length


def _can_choose(site: RouterSite, banned: Sequence[int]) -> bool:
    """Whether a router has experts left without some."""
    try:
        check_router(site, suppressed=banned, stimulated=(), rerouted=True)
    except ModelMismatchError:
        return False
    return True


def _checked(where: str, route: object, sizes: Mapping[int, int], top_k: Mapping[int, int]) -> Route:
    if not isinstance(route, Route):
        raise DataError(where, "must be a Route", got=type(route).__name__)
    most = sizes.get(whole(f"{where}.layer", route.layer), 0) - 1
    if most < 0:
        known = f"one of {', '.join(map(str, sizes))}"
        what = "must be a layer of the model of the fingerprint"
        raise DataError(f"{where}.layer", what, got=route.layer, expected=known)

    def experts(name: str, given: object) -> tuple[int, ...]:
        if not isinstance(given, list | tuple) or not given:
            raise DataError(f"{where}.{name}", "must be a list of experts", got=repr(given)[:60])
        return tuple(whole(f"{where}.{name}", expert, most=most) for expert in given)

    out, into = experts("experts_out", route.experts_out), experts("experts_in", route.experts_in)
    if len(out) != len(into) or len({*out, *into}) < 2 * len(out) or len(out) > top_k[route.layer]:
        what = "must put as many other experts in the place of some that were chosen"
        got, expected = f"{out} out, {into} in", f"at most {top_k[route.layer]} each, all different"
        raise DataError(where, what, got=got, expected=expected)
    weight, effect = real(f"{where}.weight", route.weight), real(f"{where}.effect", route.effect)
    return Route(route.layer, out, into, weight, effect)


def _named(experts: Sequence[int]) -> str:
    return " ".join(map(str, experts))
