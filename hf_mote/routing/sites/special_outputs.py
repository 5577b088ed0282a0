"""How a router's output is read and written, and the few routers that do more than their rule states.

Most routers return logits, weights and indices, and `RouterOutput` serves them. The others are named in their row of
the table: dense scores, a sorted dispatch, bare logits, a selection or a normalisation of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.edits import RoutingEdit, values_at
from hf_mote.routing.rules.selection import NEVER, Routing, choose_experts, family_weights, rank_forced, reweigh, score
from hf_mote.routing.sites.output import RouterOutput, contract_error
from hf_mote.routing.sites.site import RouterSite

__all__ = ["SPECIAL_OUTPUTS", "adapter_for", "refusals_of"]


class DenseScores(RouterOutput):
    """`(scores, logits)`, both `(tokens, experts)`: scores are 0 for experts that are not chosen (Llama 4)."""

    def __init__(self, site: RouterSite, output: object) -> None:
        self.site = site
        shapes = [item.shape[-1] for item in output] if isinstance(output, tuple) else []
        if shapes != [site.num_experts] * 2:
            raise contract_error(site, output, "dense scores and logits")

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        scores, logits = output
        indices = torch.topk(logits, self.site.top_k, dim=-1).indices
        return logits, Routing(scores.gather(-1, indices), indices)

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        scores, indices = choose_experts(self.read(output)[0], self.site.selection, None, edit)
        # Of all experts at once, as the router does: of the chosen ones alone, torch may round another way.
        weights = scores.float().sigmoid().gather(-1, indices)
        if edit.banned is not None:
            weights = weights.masked_fill(values_at(edit.banned, indices), 0.0)
        return Routing(reweigh(weights, indices, edit), indices)

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        scores = torch.zeros_like(output[0])
        return scores.scatter(-1, routing.indices, routing.weights.to(scores.dtype)), output[1]


class SortedDispatch(RouterOutput):
    """`(order, token, weight, experts' sizes, logits)`: tokens sorted by expert (JetMoE)."""

    def __init__(self, site: RouterSite, output: object) -> None:
        self.site = site
        if not isinstance(output, tuple) or len(output) != 5 or not isinstance(output[3], list):
            raise contract_error(site, output, "order, token, weight, sizes and logits")

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        order, _, sorted_weights, sizes, logits = output
        sizes = torch.tensor(sizes, device=order.device)
        experts = torch.repeat_interleave(torch.arange(len(sizes), device=order.device), sizes)
        indices = torch.empty_like(order).scatter(0, order, experts).view(len(logits), -1)
        weights = torch.empty_like(sorted_weights).scatter(0, order, sorted_weights).view(len(logits), -1)
        return logits, Routing(weights, indices)

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        flat = routing.indices.flatten()
        order = flat.sort(stable=True).indices
        sizes = torch.bincount(flat, minlength=self.site.num_experts).tolist()
        tokens = order.div(self.site.top_k, rounding_mode="trunc")
        return order, tokens, routing.weights.flatten()[order].to(output[2].dtype), sizes, output[4]


class LogitsOnly(RouterOutput):
    """Bare logits; selection and weights follow in the block (DBRX).

    A selection is imposed through the logits, minus infinity for experts that are not to be chosen; the block's
    normalisation then gives the chosen ones their own weights and no others.
    """

    refuses = {
        "drop": "the block normalises the weights after the router, so that no weight can be set",
        "zero": "the block normalises the weights after the router, so that no weight can be set",
        "stimulate_weight": "the block normalises the weights after the router, so that no weight can be set",
        "gain": "the block normalises the weights after the router, so that no weight can be set",
        "attribution": "the block computes the weights after the router",
    }

    def __init__(self, site: RouterSite, output: object) -> None:
        self.site = site
        if not isinstance(output, Tensor) or output.shape[-1] != site.num_experts:
            raise contract_error(site, output, "logits")

    @classmethod
    def refused_by(cls, site: RouterSite) -> Mapping[str, str]:
        if getattr(site.block, "moe_normalize_expert_weights", None) is not None:
            return cls.refuses
        # Logits then give the chosen experts their weights only through those of all the others.
        reason = "the block does not normalise the weights, so that a choice cannot be set without changing them"
        edits = ("reroute", "stimulate", "bias_on_logits", "bias_on_selection")
        return {**cls.refuses, **dict.fromkeys(edits, reason)}

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        weights, indices = self.site.block.route_tokens_to_experts(output)  # type: ignore[union-attr, operator]
        return output, Routing(weights, indices)

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        return self.read(output if edit.is_empty else self._imposed(output, edit))[1]

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        chosen = torch.full_like(output, NEVER).scatter(-1, routing.indices, routing.weights.to(output.dtype).log())
        return chosen if touched is None else torch.where(touched[:, None], chosen, output)

    def _imposed(self, output: Tensor, edit: RoutingEdit) -> Tensor:
        logits = output if edit.logit_bias is None else output + edit.logit_bias
        _, indices = choose_experts(output, self.site.selection, None, edit)
        chosen = torch.zeros_like(output, dtype=torch.bool).scatter(-1, indices, True)
        return logits.masked_fill(~chosen, NEVER)


class Sparsemixer(RouterOutput):
    """Experts chosen one after the other, each with a softmax of its own (PhiMoE); the family's function is called."""

    refuses = {
        "trained_bias": "sparsemixer samples the experts in training mode, and its weights are constant where few "
        "logits are near the largest",
        "stimulate": "sparsemixer chooses one expert after the other and has no rule for one that must be chosen",
        "bias_on_selection": "sparsemixer has no selection scores apart from its logits",
    }

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        router: Any = self.site.module
        if router.training:
            raise UnsupportedError(
                self.site.path, "sparsemixer samples in training mode", fix="Call model.eval() before."
            )
        logits = self.read(output)[0]
        logits = logits if edit.logit_bias is None else (logits + edit.logit_bias).to(logits.dtype)
        if edit.banned is not None:
            logits = logits.masked_fill(edit.banned, NEVER)
        family = next(cls for cls in type(router).__mro__ if cls.__module__.startswith("transformers.models."))
        weights, indices = sys.modules[family.__module__].sparsemixer(
            logits, jitter_eps=router.router_jitter_noise, training=False, top_k=router.top_k
        )
        return Routing(reweigh(weights, indices, edit), indices)


class HashTable(RouterOutput):
    """Experts looked up by token id; only the weights are learnt (the first layers of DeepSeek-V4)."""

    refuses = {"bias_on_selection": "a table chooses the experts; there are no selection scores to bias"}

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        logits, native = self.read(output)
        scores = score(logits, self.site.selection, edit)
        indices = native.indices
        if edit.banned is not None or edit.forced is not None:
            # The table's experts first, by score; a freed slot is filled by score, too.
            # Ranks: adding a large number would remove the digits of the scores, above all in bfloat16.
            listed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, indices, True)
            choice = (scores.argsort(dim=-1).argsort(dim=-1) + listed * scores.shape[-1]).float()
            if edit.banned is not None:
                choice = choice.masked_fill(edit.banned, NEVER)
            chosen = torch.topk(rank_forced(choice, self.site.selection, edit), self.site.top_k, dim=-1).indices
            if edit.forced is None and edit.banned is not None:
                # Rows of the table without a banned expert stay as they are, also where they name an expert twice.
                hit = edit.banned.expand_as(scores).gather(-1, indices).any(dim=-1, keepdim=True)
                chosen = torch.where(hit, chosen, indices)
            indices = chosen
        weights = family_weights(scores, indices, self.site.selection, edit)
        return Routing(reweigh(weights, indices, edit), indices)


class JointShared(RouterOutput):
    """Weights normalised together with those of the shared experts, which come fourth (Inkling)."""

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        logits, weights, indices = (output[slot] for slot in self.slots)
        return logits, Routing(weights, indices, output[3])

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        site, router = self.site, self.site.module
        with align_module_device(router), torch.autocast(args[0].device.type, enabled=False):
            weight: Any = router.weight
            # float32 since transformers 5.23, the model's dtype before.
            dtype = output[self.slots[0]].dtype
            hidden = args[0].reshape(-1, weight.shape[-1]).to(dtype)
            logits = torch.nn.functional.linear(hidden, weight.to(dtype))
            global_scale: Any = router.global_scale
            global_scale = global_scale.to(dtype)
        routed, shared = logits[:, : site.num_experts], logits[:, site.num_experts :]
        if edit.logit_bias is not None:
            routed = routed + edit.logit_bias
        _, indices = choose_experts(logits[:, : site.num_experts], site.selection, site.selection_bias(), edit)
        chosen = routed.gather(-1, indices)
        if edit.banned is not None:
            banned = edit.banned if edit.banned.ndim == 2 else edit.banned.expand_as(routed)
            chosen = chosen.masked_fill(banned.gather(-1, indices), NEVER)
        logs = torch.nn.functional.logsigmoid(torch.cat([chosen, shared], dim=-1))
        weights = torch.exp(logs - torch.logsumexp(logs, dim=-1, keepdim=True)) * site.selection.scale * global_scale
        weights = weights.to(output[self.slots[1]].dtype)
        mine, gammas = weights[:, : site.top_k], weights[:, site.top_k :]
        return Routing(reweigh(mine, indices, edit), indices, gammas)

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        items = list(super().write(output, routing, touched))
        if routing.shared is not None:
            items[3] = routing.shared.to(output[3].dtype).contiguous()
        return tuple(items)


class SkipClass(RouterOutput):
    """One class more than experts, for skipping the layer: weight 0 and index 0 in the output (Zaya).

    Here it is the last "expert", so that a skipped token does not count as one of expert 0.
    """

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        logits, weights, indices = (output[slot] for slot in self.slots)
        return logits, Routing(weights, indices.masked_fill(weights == 0, self.site.num_experts - 1))

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        weights, indices = self.site.select(self.read(output)[0], edit)[:2]
        return Routing(weights.masked_fill(indices == self.site.num_experts - 1, 0.0), indices)

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        skipped = routing.indices == self.site.num_experts - 1
        return super().write(output, Routing(routing.weights, routing.indices.masked_fill(skipped, 0)), touched)


class WeightsAlone(RouterOutput):
    """Indices and weights without logits (the gates of DeepSeek's remote code).

    Weights can be changed; the choice cannot, because the scores of the other experts are missing.
    """

    refuses = {
        **dict.fromkeys(
            ("reroute", "stimulate", "bias_on_logits", "bias_on_selection"),
            "it returns no logits that another choice could follow from; load the model with transformers' own class, "
            "without trust_remote_code and without the auto_map of its config.json, or suppress by 'drop' or 'zero'",
        ),
        "attribution": "the blocks of such remote code run their experts under torch.no_grad, where every derivative "
        "is 0; load the model with transformers' own class, without trust_remote_code",
    }

    def __init__(self, site: RouterSite, output: object) -> None:
        self.site = site
        items = output if isinstance(output, tuple) else ()
        rows = {p: item for p, item in enumerate(items) if isinstance(item, Tensor) and item.ndim == 2}
        weights = [p for p, item in rows.items() if item.is_floating_point()]
        indices = [p for p in rows if p not in weights]
        # A second float tensor may be logits after all.
        if [rows[p].shape[-1] for p in (*weights, *indices)] != [site.top_k] * 2 or not weights or not indices:
            raise contract_error(site, output, "weights and indices and no logits")
        self.slots = (weights[0], weights[0], indices[0])

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        _, weights, indices = (output[slot] for slot in self.slots)
        return weights.new_empty(len(weights), 0), Routing(weights, indices)

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        if not edit.only_weights:
            raise UnsupportedError(self.site.path, self.refuses["reroute"])
        native = self.read(output)[1]
        return native._replace(weights=reweigh(native.weights, native.indices, edit))


SPECIAL_OUTPUTS: dict[str, type[RouterOutput]] = {
    "dense_scores": DenseScores,
    "hash_table": HashTable,
    "joint_shared": JointShared,
    "logits_only": LogitsOnly,
    "skip_class": SkipClass,
    "sorted_dispatch": SortedDispatch,
    "sparsemixer": Sparsemixer,
    "weights_alone": WeightsAlone,
}


def adapter_for(site: RouterSite, output: object) -> RouterOutput:
    """Return the reader and writer of a router's output.

    Args:
        site (`RouterSite`): The router.
        output (`object`): An output of it.

    Raises:
        [`RouterContractError`]: if the output is not what the row of the table says.
    """
    kind = RouterOutput if site.rule.adapter is None else SPECIAL_OUTPUTS[site.rule.adapter]
    return kind(site, output)


def refusals_of(site: RouterSite) -> Mapping[str, str]:
    """Return which interventions a router cannot take, by name, and why.

    Args:
        site (`RouterSite`): The router.
    """
    return {} if site.rule.adapter is None else SPECIAL_OUTPUTS[site.rule.adapter].refused_by(site)
