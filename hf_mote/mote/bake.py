"""`bake_mote`: a `MoTEConfig` folded into plain weights, where the result equals the live profile.

A baked checkpoint does not need this package: stock transformers, vLLM and others load it as any other. Most edits of
routing cannot be baked, and each of these is refused with its reason. The others are:

| edit | in the weights |
| --- | --- |
| `zero`, gains | the experts' down projection times `1 - strength`, or times the gain at that strength |
| `reroute` | minus infinity in the selection bias or in the router's bias, where there is one |
| `reroute`, weights renormalised, the same number in every layer | the experts removed |
| `bias` | added to the selection bias (`"selection"`) or to the router's bias (`"logits"`) |

Every edit is checked: each changed block is run on inputs that reach the edited experts, live and baked, and the
outputs are compared before the model is returned.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.hooks import stack_on
from hf_mote.hub import public_name
from hf_mote.mote.bake_proof import prove
from hf_mote.mote.baked_model import BakedChange, BakedModel
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import gain_at
from hf_mote.mote.patch import load_config
from hf_mote.routing.router_hook import RouterHook
from hf_mote.routing.sites.placement import holder_of
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import BLOCK, RouterSite

__all__ = ["bake_mote"]

_WHERE = "bake_mote"
_LIVE = "Attach it with apply_mote, or serve it as a profile."
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
NEVER = float("-inf")


def bake_mote(model: nn.Module, config: MoTEConfig | str, *, allow_other_weights: bool = False) -> BakedModel:
    """Return a plain model whose weights do what a config does; the given model is not changed.

    Tensors that do not change are shared with the given model, those that do are copies.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts model of transformers, its weights in memory, nothing attached to its routers.
        config (`MoTEConfig` or `str`):
            A config, the folder or file it was saved in, or the Hub repository it was pushed to.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            As in [`apply_mote`].

    Returns:
        [`BakedModel`]: the model, what was changed and how far its outputs are from the live profile's; its
        `save_pretrained` writes the checkpoint with a card.

    Raises:
        [`UnsupportedError`]: if weights cannot express the config, with the reason: `"drop"`, stimulation,
            scopes, positions, and what the model's routers have no place for.
        [`ModelMismatchError`]: if the config does not fit the model.
        [`ConfigError`]: if the config changes nothing.
        [`RouterContractError`]: if a baked block does not do what the live one does.
    """
    config = load_config(config)
    routed = RoutedModel(model)
    if allow_other_weights:
        config = config.for_other_weights_of(routed)
    sites = routed.sites
    check_against_model(config, routed)
    if config.is_empty:
        raise ConfigError(_WHERE, "the config changes nothing", got="no targets, or strength 0")
    _check_bakeable(config)
    plain = _checked_model(model, sites)
    by_layer = {site.layer: site for site in sites}
    changes: list[BakedChange] = []
    new: dict[str, Tensor] = {}
    removed: dict[int, list[int]] = {}
    factors: dict[int, dict[int, float]] = defaultdict(dict)
    for layer, expert, value in config.gain:
        factors[layer][expert] = gain_at(value, config.strength)
    if config.suppress and config.suppress_mode == "zero":
        for layer, expert in config.suppress:
            factors[layer][expert] = 1.0 - config.strength
    elif config.suppress:
        banned = _by_layer(config.suppress)
        places = {layer: _place_of_ban(by_layer[layer], experts) for layer, experts in banned.items()}
        if all(places.values()):
            for layer, experts in banned.items():
                values = dict.fromkeys(experts, NEVER)
                changes.append(_add(plain, by_layer[layer], places[layer] or "", values, new, "minus infinity"))
        else:
            _check_removable(config, sites, banned)
            removed = banned
    for layer, scaled in factors.items():
        changes += _scale(plain, by_layer[layer], scaled, new)
    if config.bias:
        shifts: dict[int, dict[int, float]] = defaultdict(dict)
        for layer, expert, value in config.bias:
            shifts[layer][expert] = value * config.strength
        for layer, values in shifts.items():
            place = _place_of_bias(by_layer[layer], config.bias_on)
            changes.append(_add(plain, by_layer[layer], place, values, new, "the bias added"))
    if removed:
        baked, cut = _without(plain, sites, removed, new)
        changes += cut
    else:
        baked = _twin(plain, new)
    proof = prove(plain, baked.eval(), config, sites, touched=sorted({change.layer for change in changes}))
    name = public_name(getattr(plain.config, "name_or_path", None))
    return BakedModel(baked, config, name, tuple(changes), proof)


def _check_bakeable(config: MoTEConfig) -> None:
    """Refuse edits that weights cannot express, for any model."""
    reasons = {
        f"scope {config.scope!r}": (
            config.scope != "all",
            "weights are the same for every token",
            "Leave the scope at 'all', or apply it live.",
        ),
        "positions": (
            config.positions is not None,
            "weights are the same for every token",
            "Leave positions out, or apply it live.",
        ),
        "drop": (
            bool(config.suppress) and config.suppress_mode == "drop",
            "what 'drop' takes from an expert goes to the others that the token chose, by a factor that differs from "
            "token to token; scaling the expert's weights cannot do that",
            "Suppress the same experts in mode 'zero', or 'reroute' where the routers have a place for it: hf-mote "
            f"ftri or attribute with --suppress {len(config.suppress)} --mode zero, or in Python "
            "dataclasses.replace(config, suppress_mode='zero'). Evaluate that config, and bake it.",
        ),
        "stimulate": (
            bool(config.stimulate),
            "an expert that is always chosen takes one of the top-k places, and no bias lifts it there without also "
            "changing routing weights or the chosen groups",
            _LIVE,
        ),
    }
    for what, (found, why, fix) in reasons.items():
        if found:
            raise UnsupportedError(_WHERE, f"cannot be expressed by weights alone: {why}", got=what, fix=fix)


def _checked_model(model: nn.Module, sites: Sequence[RouterSite]) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        fix = "Merge adapters (merge_and_unload), unwrap the model, and give that."
        raise UnsupportedError(
            _WHERE, "must be a plain model", got=type(model).__name__, expected="a PreTrainedModel", fix=fix
        )
    if getattr(model, "hf_quantizer", None) is not None:
        fix = "Load the model in bfloat16 or float32; quantise what was baked."
        raise UnsupportedError(_WHERE, "a changed weight cannot be stored exactly in a quantised model", fix=fix)
    adapted = [path for path, part in model.named_modules() if getattr(part, "lora_A", None) is not None]
    if adapted:
        raise UnsupportedError(_WHERE, "an adapter is attached", got=adapted[0], fix="Merge it first.")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or hasattr(tensor, "full_tensor"):
            fix = "Load the model whole into memory, without offloading, sharding or tensor parallelism."
            raise UnsupportedError(_WHERE, "a weight is not in memory in one piece", got=name, fix=fix)
    for site in sites:
        stack = stack_on(site.module, RouterHook)
        if stack is not None and stack.participants:
            fix = "Remove it first: what is attached is in no weight."
            raise UnsupportedError(_WHERE, "something is attached to a router", got=site.path, fix=fix)
    return model


def _by_layer(pairs: Iterable[Sequence[int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for layer, expert in pairs:
        found[layer].append(expert)
    return dict(found)


def _scale(
    model: PreTrainedModel, site: RouterSite, factors: Mapping[int, float], new: dict[str, Tensor]
) -> list[BakedChange]:
    """Multiply experts' last projections, and their biases, each by its factor."""
    holder = holder_of(site.path)
    block = model.get_submodule(holder)
    found = [
        (name, tensor)
        for name, tensor in block.named_parameters()
        if name in ("experts.down_proj", "experts.down_proj_bias") and len(tensor) == site.num_experts
    ]
    if not any(name == "experts.down_proj" and tensor.ndim == 3 for name, tensor in found):
        raise UnsupportedError(
            f"layer {site.layer} ({holder})",
            "the experts' down projection was not found",
            got=", ".join(name for name, _ in block.named_parameters())[:200],
            expected=f"experts.down_proj of {site.num_experts} experts",
            fix=_LIVE,
        )
    changes = []
    experts = sorted(factors)
    times = [f"{factors[expert]:g}" for expert in experts]
    how = f"times {times[0] if len(set(times)) == 1 else ', '.join(times)}"
    for name, tensor in found:
        path = f"{holder}.{name}"
        scaled = tensor.detach().clone()
        for expert, factor in factors.items():
            scaled[expert] *= factor
            wanted = tensor.detach()[expert].double() * factor
            if tensor.dtype != torch.float32 and not torch.equal(scaled[expert].double(), wanted):
                raise UnsupportedError(
                    path,
                    f"{factor:g} times a weight is not exact in {str(tensor.dtype).removeprefix('torch.')}, so that "
                    "every weight would be rounded anew",
                    got=f"expert {expert}, times {factor:g}",
                    expected="factors that are powers of 2, as of strength 1 or 0.5, or weights in float32",
                )
        new[path] = scaled
        gguf = f"blk.{site.layer}.ffn_down_exps.{'bias' if name.endswith('bias') else 'weight'}"
        changes.append(BakedChange(path, site.layer, tuple(experts), how, gguf))
    return changes


def _place_of_ban(site: RouterSite, experts: list[int]) -> str | None:
    """Return the tensor that minus infinity is written to, or `None` if there is none."""
    selection, bias = site.selection, site.selection_bias()
    if site.rule.adapter is not None:
        raise UnsupportedError(
            f"layer {site.layer} ({site.path})", "the router does more than its rule states", got="reroute", fix=_LIVE
        )
    if bias is None:
        return _router_bias(site)
    if selection.num_groups > 1 and site.rule.group_score == "top2_sum":
        size = site.num_experts // selection.num_groups
        left = [size - sum(expert // size == group for expert in experts) for group in range(selection.num_groups)]
        if 1 in left:
            raise UnsupportedError(
                f"layer {site.layer} ({site.path})",
                "a group of experts is left with one, and a group is ranked by its two best: with minus infinity as "
                "one of them it would never be chosen",
                got=f"survivors of each group: {left}",
                fix="Suppress all or at most all but two of a group.",
            )
    return _selection_bias_path(site)


def _place_of_bias(site: RouterSite, bias_on: str) -> str:
    where = f"layer {site.layer} ({site.path})"
    if site.rule.adapter is not None:
        raise UnsupportedError(where, "the router does more than its rule states", got="bias", fix=_LIVE)
    if bias_on == "selection":
        if site.selection_bias() is None:
            raise UnsupportedError(where, "the router has no selection bias to add to", got="bias_on 'selection'")
        return _selection_bias_path(site)
    place = _router_bias(site)
    if place is None:
        raise UnsupportedError(where, "the router is a matrix without a bias to add to", got="bias_on 'logits'")
    if next(site.module.parameters()).dtype != torch.float32:
        raise UnsupportedError(
            where,
            "the router adds its bias in its own dtype and the live profile in float32, so that close choices differ",
            got=str(next(site.module.parameters()).dtype),
            expected="a model loaded in float32",
        )
    return place


def _router_bias(site: RouterSite) -> str | None:
    """Return the path of a router's own bias, where the choice is by unchanged logits."""
    bias = getattr(site.module, "bias", None)
    if site.rule.scoring != "logits" or not isinstance(bias, nn.Parameter) or bias.shape != (site.num_experts,):
        return None
    return f"{site.path}.bias"


def _selection_bias_path(site: RouterSite) -> str:
    name = site.rule.selection_bias or ""
    owner = holder_of(site.path) if name.startswith(BLOCK) else site.path
    return f"{owner}.{name.removeprefix(BLOCK)}"


def _add(
    model: PreTrainedModel,
    site: RouterSite,
    path: str,
    values: Mapping[int, float],
    new: dict[str, Tensor],
    how: str,
) -> BakedChange:
    owner, _, name = path.rpartition(".")
    old: Tensor = new[path] if path in new else getattr(model.get_submodule(owner), name).detach()
    flat = old.double().reshape(-1).clone()
    for expert, value in values.items():
        flat[expert] += value
    added = flat.view(old.shape).to(old.dtype)
    if old.dtype != torch.float32 and not torch.equal(added.double().reshape(-1), flat):
        raise UnsupportedError(
            path,
            "the changed bias cannot be stored exactly in this dtype, so that other experts could be chosen",
            got=str(old.dtype),
            expected="a bias that the dtype holds, or a model loaded in float32",
        )
    new[path] = added
    stem = "ffn_gate_inp" if path == f"{site.path}.bias" else "exp_probs_b"
    return BakedChange(path, site.layer, tuple(values), how, f"blk.{site.layer}.{stem}.bias")


def _check_removable(config: MoTEConfig, sites: Sequence[RouterSite], banned: Mapping[int, list[int]]) -> None:
    """Refuse to remove experts where the weights of the others would not be renormalised."""
    for site in sites:
        rule, where = site.rule, f"layer {site.layer} ({site.path})"
        more = rule.selection_bias or site.selection.num_groups > 1 or rule.expert_scale or rule.divide_by_top_k
        of_chosen = rule.scoring == "logits" and rule.weights_from == "softmax"
        if more or not (rule.scoring == "softmax" or of_chosen):
            raise UnsupportedError(
                where, "removing experts was not proved for the rule", got=repr(rule.name), fix=_LIVE
            )
        if not (of_chosen or site.selection.renormalize):
            raise UnsupportedError(
                where,
                "there is no bias that bans an expert, and with experts removed the others' weights would grow, as "
                "they are not renormalised",
                got=f"reroute, with the rule {rule.name!r}",
                fix=_LIVE,
            )
    numbers = {site.layer: len(banned.get(site.layer, ())) for site in sites}
    if len(set(numbers.values())) > 1:
        raise UnsupportedError(
            _WHERE,
            "the routers have no bias that bans an expert, so it must be removed, and a config has one number of "
            "experts for all layers",
            got=", ".join(f"{number} of layer {layer}" for layer, number in numbers.items())[:200],
            expected="the same number suppressed in every layer",
            fix=_LIVE,
        )
    if config.bias:
        raise UnsupportedError(_WHERE, "the router has no bias to add to", got="bias", fix=_LIVE)


def _twin(model: PreTrainedModel, new: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a copy of a model that shares all tensors except the new ones."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    twin: PreTrainedModel = copy.deepcopy(model, dict(shared))
    for path, tensor in new.items():
        owner, _, name = path.rpartition(".")
        _put(twin.get_submodule(owner), name, tensor)
    return twin


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor


def _without(
    model: PreTrainedModel, sites: Sequence[RouterSite], removed: Mapping[int, list[int]], new: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, list[BakedChange]]:
    """Return the model without some experts, built by its own class from a config with fewer."""
    before = sites[0].num_experts
    left = before - len(removed[sites[0].layer])
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    names = [name for name in _NUM_EXPERTS if getattr(text, name, None) == before]
    if not names:
        raise UnsupportedError(_WHERE, "the number of experts was not found in the config", expected=str(_NUM_EXPERTS))
    for name in names:
        setattr(text, name, left)
    with torch.device("meta"):
        fresh = type(model)(config)
    survivors = {
        holder_of(site.path): (site.layer, [e for e in range(before) if e not in removed[site.layer]])
        for site in sites
    }
    state, changes = {}, []
    old = model.state_dict()
    for name, wanted in fresh.state_dict().items():
        tensor = new.get(name, old[name])
        if tensor.shape != wanted.shape:
            holder = next((path for path in survivors if name.startswith(f"{path}.")), None)
            if holder is None or tensor.shape != (before, *wanted.shape[1:]) or len(wanted) != left:
                raise UnsupportedError(
                    _WHERE, "a tensor that does not belong to experts would change its shape", got=name, fix=_LIVE
                )
            layer, kept = survivors[holder]
            tensor = tensor[kept].clone()
            changes.append(BakedChange(name, layer, tuple(removed[layer]), "removed", _gguf_of_removed(layer, name)))
        state[name] = tensor
    fresh.load_state_dict(state, assign=True)
    for name, buffer in model.named_buffers():
        if name not in state:
            owner, _, last = name.rpartition(".")
            _put(fresh.get_submodule(owner), last, buffer)
    fresh.tie_weights()
    fresh.requires_grad_(False)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh, changes


def _gguf_of_removed(layer: int, name: str) -> str | None:
    known: dict[str, Callable[[int], str]] = {
        "experts.down_proj": "blk.{}.ffn_down_exps.weight".format,
        "gate.weight": "blk.{}.ffn_gate_inp.weight".format,
        "router.weight": "blk.{}.ffn_gate_inp.weight".format,
    }
    return next((made(layer) for end, made in known.items() if name.endswith(end)), None)
