"""Experiments on one router: run a copy of it, compare it with a rule, and find inputs on which two rules differ.

The router's forward runs on copies (`scratch_copy.py`), in evaluation mode and without hooks, so that what a router
changes while it runs is not changed in the model. Rules that agree on ordinary inputs may differ where all logits are
very negative (a term added to the sum of the weights shows), or once a number of the router is another one (a rule
that reads the number follows, the others do not).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.rules.rule import RoutingRule, attribute_of
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.packed import feed_of, packed_parts
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.self_test import probe_args
from hf_mote.routing.sites.site import BLOCK, RouterSite, site_of
from hf_mote.routing.sites.special_outputs import adapter_for

__all__ = [
    "Answer",
    "RouterUnderTest",
    "compare_with_rule",
    "num_matching",
    "ordinary_inputs",
    "telling_inputs",
    "under_test",
    "variants",
]

NUM_TOKENS = 128
# A sigmoid is 1e-35 at minus that, still no subnormal float.
LOWEST_LOGIT = 80.0


class RouterUnderTest(NamedTuple):
    """A router under test.

    Attributes:
        path (`str`): Its dotted path in the model.
        module (`nn.Module`): The router.
        block (`nn.Module`, *optional*): The module that holds it.
    """

    path: str
    module: nn.Module
    block: nn.Module | None


class Answer(NamedTuple):
    """The output of a router, and the routing of a rule from its logits.

    Attributes:
        logits (`torch.Tensor` of shape `(tokens, experts)`): Its logits; no columns where it returns none.
        native (`Routing`): Its own routing.
        ruled (`Routing`): The rule's.
        form (`Hashable`): The rule with the router's numbers; rules of one form are equal.
    """

    logits: Tensor
    native: Routing
    ruled: Routing
    form: Hashable


@contextmanager
def under_test(router: RouterUnderTest) -> Iterator[RouterUnderTest]:
    """Yield a copy of a router that can be run and changed, without effect on the model or torch's random state.

    Args:
        router (`RouterUnderTest`): The router.

    Raises:
        [`UnsupportedError`]: if its weights are not there.
    """
    with scratch_copy(router.module) as scratch:
        weight = next(scratch.parameters(), None)
        if weight is None or weight.is_meta:
            raise UnsupportedError(
                router.path,
                f"{type(router.module).__name__} cannot be tried out",
                got="no parameters" if weight is None else "parameters on the meta device",
                expected="a router with its weights",
                fix="Load the weights first.",
            )
        yield router._replace(module=scratch.eval())


def compare_with_rule(router: RouterUnderTest, rule: RoutingRule, hidden: Tensor) -> Answer:
    """Return the routing of a router and of a rule for hidden states.

    Errors of the router's forward are raised.

    Args:
        router (`RouterUnderTest`): The router.
        rule (`RoutingRule`): The rule.
        hidden (`torch.Tensor` of shape `(tokens, hidden_size)`): Hidden states, any float dtype.

    Raises:
        [`RouterContractError`]: if the router does not return what the rule's adapter reads.
        [`UnsupportedError`]: if it chooses experts that it does not have.
        `AttributeError`: if it lacks a number that the rule reads.
    """
    site = site_of(router.path, router.module, rule, router.block)
    args = probe_args(site, hidden.to(feed_of(router.module, router.block).dtype))
    # Copies, as one of them may be a tensor of the block, which the forward could change.
    output = router.module.forward(*(arg if arg is None else arg.clone() for arg in args))
    adapter = adapter_for(site, output)
    logits, native = adapter.read(output)
    if not bool(((native.indices >= 0) & (native.indices < site.num_experts)).all()):
        raise UnsupportedError(
            site.path,
            "the router chooses experts that do not exist",
            got=f"{int(native.indices.min())}..{int(native.indices.max())}",
            expected=f"0..{site.num_experts - 1}",
        )
    ruled = adapter.route(output, args, RoutingEdit())
    ruled = ruled._replace(weights=ruled.weights.to(native.weights.dtype))
    return Answer(logits, native, ruled, _form(site, logits.dtype))


def num_matching(router: RouterUnderTest, rule: RoutingRule, hidden: Tensor) -> int:
    """Return for how many tokens a rule gives a router's own experts and weights, bit for bit.

    Args:
        router (`RouterUnderTest`): The router.
        rule (`RoutingRule`): The rule; 0 tokens if it cannot be applied to the router.
        hidden (`torch.Tensor` of shape `(tokens, hidden_size)`): Hidden states, any float dtype.
    """
    try:
        _, native, ruled, _ = compare_with_rule(router, rule, hidden)
    except Exception:  # foreign code, and rules for other routers
        return 0
    same = (native.indices == ruled.indices) & (native.weights == ruled.weights)
    return int(same.all(dim=-1).sum())


def ordinary_inputs(router: RouterUnderTest) -> Tensor:
    """Return hidden states `(NUM_TOKENS, hidden_size)`, normal, the second half three times as large.

    Args:
        router (`RouterUnderTest`): The router.
    """
    feed = feed_of(router.module, router.block)
    hidden = torch.randn(NUM_TOKENS, feed.width, generator=torch.Generator().manual_seed(0))
    hidden[NUM_TOKENS // 2 :] *= 3
    return hidden.to(feed.device)


def telling_inputs(router: RouterUnderTest, rule: RoutingRule) -> Tensor:
    """Return hidden states `(at most 2 * NUM_TOKENS, hidden_size)` with low logits and with logits of two levels.

    Logits are linear in the hidden states, or nearly: the right combinations of random hidden states are solved for.
    Those with an infinite output are left out.

    Args:
        router (`RouterUnderTest`): The router.
        rule (`RoutingRule`): A rule that reads its logits.
    """
    generator = torch.Generator().manual_seed(1)
    num_experts = site_of(router.path, router.module, rule, router.block).num_experts
    feed = feed_of(router.module, router.block)
    basis = torch.randn(num_experts + 8, feed.width, generator=generator)
    basis = torch.cat([torch.zeros_like(basis[:1]), basis]).to(feed.device)
    logits = compare_with_rule(router, rule, basis).logits.double().cpu()
    if not bool(logits.isfinite().all()):
        return basis[:0]
    noise = torch.randn(2 * NUM_TOKENS, num_experts, generator=generator).double()
    low = noise[:NUM_TOKENS] - torch.linspace(5, LOWEST_LOGIT, NUM_TOKENS)[:, None]
    share_of_high = torch.linspace(0.05, 0.6, NUM_TOKENS)[:, None]
    two_levels = 0.1 * noise[NUM_TOKENS:] + (torch.rand(low.shape, generator=generator) < share_of_high)
    weights = (torch.cat([low, two_levels]) - logits[0]) @ torch.linalg.pinv(logits[1:] - logits[0])
    hidden = weights.float().to(basis) @ basis[1:]
    usable = compare_with_rule(router, rule, hidden).native.weights.isfinite().all(dim=-1)
    return torch.as_tensor(hidden[usable])


def variants(router: RouterUnderTest, rules: Sequence[RoutingRule]) -> Iterator[RouterUnderTest]:
    """Yield the router with one of its numbers, or its dtype, changed: equal rules may differ on these.

    Args:
        router (`RouterUnderTest`): The router that they reproduce.
        rules (`Sequence[RoutingRule]`): The rules.
    """
    for path, value in _other_values(router, rules):
        owner, name = _owner(router, path)
        try:
            changed = _changed(owner, name, value)
        except AttributeError:  # a property
            continue
        yield router._replace(**{"module" if owner is router.module else "block": changed})
    for dtype in (torch.bfloat16, torch.float32) if not packed_parts(router.module) else ():
        if next(router.module.parameters()).dtype != dtype:
            yield router._replace(module=_cast(router.module, dtype))


def _form(site: RouterSite, dtype: torch.dtype) -> Hashable:
    rule, selection = site.rule, site.selection
    bias, scale = site.selection_bias(), site.expert_scale()
    grouped, exact = selection.num_groups > 1, dtype == torch.float32
    return (
        rule.scoring,
        rule.adapter,
        rule.native_dtype or exact,
        rule.selection_bias if bias is not None and bool(bias.any()) else None,
        (rule.group_score, rule.group_fill) if grouped else None,
        "scores" if rule.weights_from == "choice" and not grouped else rule.weights_from,
        rule.weights_float32 or exact,
        (rule.epsilon, selection.least_sum) if selection.renormalize else None,
        selection.scale,
        rule.expert_scale if scale is not None and bool((scale != 1).any()) else None,
        selection.top_k if rule.divide_by_top_k else 1,
        rule.sorted or selection.top_k == 1,
    )


def _other_values(router: RouterUnderTest, rules: Sequence[RoutingRule]) -> Iterator[tuple[str, object]]:
    """Attributes that some rule reads, each with another value than the router has."""
    names = [(rule.selection_bias, rule.expert_scale, rule.scale, rule.renormalize) for rule in rules]
    for path in dict.fromkeys(name for some in names for name in some if isinstance(name, str)):
        value = attribute_of(*_owner(router, path))
        if isinstance(value, Tensor):
            # Mostly negative choice scores: below 0 the fill value of a group limit has an effect.
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) - 2
            yield path, value + noise.to(value)
        elif isinstance(value, bool):
            yield path, not value
        elif isinstance(value, int | float):
            yield path, 0.75 * value + 0.5
    if any(rule.scoring == "score_fn" for rule in rules):
        yield "score_fn", nn.Softplus()
    # From 1/64 of the experts on, the order that torch.topk leaves unsorted on a CPU differs from the sorted one.
    site = site_of(router.path, router.module, rules[0], router.block)
    yield rules[0].top_k, max(site.top_k + 2, site.num_experts // 64 + 2)


def _owner(router: RouterUnderTest, path: str) -> tuple[nn.Module, str]:
    """The module that a path starts in, and the path from there."""
    in_block = path.startswith(BLOCK) and router.block is not None
    return (router.block if in_block else router.module), path.removeprefix(BLOCK)  # type: ignore[return-value]


def _changed(owner: Any, path: str, value: object) -> Any:
    """A copy of a module, or of a config that it holds, with another value at a dotted path; it shares all others."""
    twin = copy.copy(owner)
    if isinstance(twin, nn.Module):
        twin.__dict__.update({name: dict(vars(owner)[name]) for name in ("_parameters", "_buffers", "_modules")})
    name, _, rest = path.partition(".")
    new = _changed(getattr(owner, name), rest, value) if rest else value
    if isinstance(new, Tensor) and name in getattr(twin, "_parameters", ()):
        new = nn.Parameter(new, requires_grad=False)
    setattr(twin, name, new)
    return twin


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module with its parameters in another dtype."""
    with scratch_copy(module) as twin:
        for part in twin.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    part._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return twin
