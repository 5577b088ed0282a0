"""`register_routers`: accepts routers that the table does not list, if exactly one of its rules reproduces them.

It is a registration and not an argument, because every function (configs, patches, records, rankings, evaluations)
finds routers by itself. Each unlisted router runs alone, as a copy in evaluation mode, on seeded inputs; a rule stays
a candidate if it gives the router's own weights and indices bit for bit. Equal rules are distinguished by
changing the router's numbers in that copy (`experiments.py`). Gates without logits are accepted for edits that need
none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from hf_mote.errors import ConfigError, RouterContractError, UnknownNameError, UnsupportedError
from hf_mote.routing.rules.families import RULES
from hf_mote.routing.rules.registry import forget_rule, register_rule, rule_for
from hf_mote.routing.rules.rule import RoutingRule
from hf_mote.routing.sites.candidates import (
    check_is_model,
    check_none_refused,
    declared_router_classes,
    offer_by,
    unlisted_routers,
)
from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.placement import holder_of
from hf_mote.routing.sites.site import BLOCK, RouterSite, layer_of
from hf_mote.routing.unlisted.experiments import (
    RouterUnderTest,
    compare_with_rule,
    num_matching,
    ordinary_inputs,
    telling_inputs,
    under_test,
    variants,
)

__all__ = ["register_routers"]

MANY = 16  # times the ordinary inputs, in the last test
ROWS = tuple(replace(rule, within=None) for rule in RULES if rule.adapter is None)
WHOLE = RoutingRule(name="logits, weights and indices", scoring="logits")
ALONE = RoutingRule(name="weights and indices, no logits", scoring="logits", adapter="weights_alone")


def register_routers(model: nn.Module, *, rule: str | RoutingRule | None = None) -> list[RouterSite]:
    """Register the routers of a model that the table does not list, and return all its router sites.

    A router class is registered for the rest of the process, for this model and others: `apply_mote`, `record_routing`
    and the rest then treat it as they treat a listed one, and check every router against its rule again before they
    touch it. All unlisted classes are registered or none. The model and torch's random state are not changed.

    A gate that returns indices and weights but no logits, as DeepSeek's remote code has them, is registered for edits
    without logits: `suppress_mode="drop"` and `"zero"`, and recording. Anything else on it is refused.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model, its weights loaded. Its routers are modules that return logits
            `(tokens, experts)`, weights and indices `(tokens, top_k)` in a tuple, in any order, and that keep the
            numbers their rule needs under the names that the rule has for them.
        rule (`str` or `RoutingRule`, *optional*):
            The one rule to try, where several fit: the id of a row, as `"softmax_topk_renorm"`, or its name (see
            `hf-mote families`), or a row of your own.

    Returns:
        `list[RouterSite]`: what [`find_routers`] returns from now on.

    Raises:
        [`UnsupportedError`]: if a router does not return that, if no rule reproduces it on 128 tokens and more, bit
            for bit, or if several do and cannot be distinguished; the message lists them.
        [`UnknownNameError`]: if no row has that name.
        [`ConfigError`]: if a rule is given, and the model has no unlisted router or the rule is for others.

    Example:

    ```python
    import torch
    from torch import nn
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import register_routers

    class MyRouter(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts, self.top_k = 4, 2
            self.weight = nn.Parameter(torch.randn(4, 32))

        def forward(self, hidden):
            logits = hidden @ self.weight.T
            weights, indices = logits.topk(self.top_k)
            return logits, weights.softmax(dim=-1), indices

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.mlp.gate = MyRouter()
    sites = register_routers(model)
    assert [site.rule.name for site in sites] == ["top-k, softmax of the chosen"] * 2
    ```
    """
    check_is_model(model, "register_routers.model")
    identified = _identified(model, rule, f"register_routers({type(model).__name__})")
    registered: list[type[nn.Module]] = []
    try:
        for cls, found in identified.items():
            register_rule(cls, found)
            registered.append(cls)
        return find_routers(model)
    except BaseException:
        for cls in registered:
            forget_rule(cls, identified[cls])
        raise


def _identified(model: nn.Module, rule: str | RoutingRule | None, where: str) -> dict[type[nn.Module], RoutingRule]:
    """The rule that each unlisted router class of a model follows.

    Raises:
        [`UnsupportedError`], [`UnknownNameError`], [`ConfigError`]: as `register_routers` does.
    """
    rows = _rows(rule)
    namings = rows if isinstance(rule, RoutingRule) else ROWS
    check_none_refused(model, where)
    modules = dict(model.named_modules())
    by_class: dict[type[nn.Module], list[RouterUnderTest]] = defaultdict(list)
    for path, module in unlisted_routers(model, namings).items():
        by_class[type_before_parametrizations(module)].append(
            RouterUnderTest(path, module, modules.get(holder_of(path)))
        )
    if rule is not None and not by_class:
        raise ConfigError(f"{where}.rule", "the model has no router without a rule", got=_name(rule))
    identified: dict[type[nn.Module], RoutingRule] = {}
    unlike: list[tuple[RouterUnderTest, UnsupportedError]] = []
    layers = {layer_of(path) for path, module in modules.items() if rule_for(module) is not None}
    for cls, routers in by_class.items():
        call_forms = _call_forms(routers[0], namings)
        if isinstance(call_forms, UnsupportedError):
            unlike += [(router, call_forms) for router in routers]
        else:
            identified[cls] = _identify(routers, call_forms, rows)
            layers |= {layer_of(router.path) for router in routers}
    for router, error in unlike:
        # Skipped beside a layer's real router, unless the model itself names it as one.
        if isinstance(router.module, declared_router_classes(model)) or layer_of(router.path) not in layers:
            raise error
    return identified


def _offer(model: nn.Module) -> str | None:
    """Return a sentence on the one rule that reproduces a model's unlisted routers; `None` if there is none.

    Args:
        model (`nn.Module`): The model; copies of its routers are run.
    """
    try:
        identified = _identified(model, None, "find_routers")
    except Exception:  # `register_routers` states the reason
        return None
    if not identified:
        return None
    said = [
        f"{cls.__name__} returns no logits, and is accepted for recording and for suppress_mode 'drop' and 'zero'"
        if rule.adapter is not None
        else f"of all known rules '{rule.name}' alone reproduces {cls.__name__}, bit for bit"
        for cls, rule in identified.items()
    ]
    return f"Call hf_mote.register_routers(model): {'; '.join(said)}."


def _name(rule: str | RoutingRule) -> str:
    return rule.name if isinstance(rule, RoutingRule) else rule


def _rows(rule: str | RoutingRule | None) -> tuple[RoutingRule, ...]:
    """The rows to try."""
    if rule is None:
        return ROWS
    if isinstance(rule, RoutingRule):
        if rule.adapter is not None:
            raise ConfigError("register_routers.rule", "a rule with an adapter is not for these routers")
        return (rule,)
    found = tuple(row for row in ROWS if rule in (row.id, row.name))
    if not found:
        raise UnknownNameError.of(
            "register_routers.rule", rule, [row.name if " " in str(rule) else row.id for row in ROWS]
        )
    return found


def _call_forms(
    router: RouterUnderTest, rows: Sequence[RoutingRule]
) -> dict[str | None, RoutingRule] | UnsupportedError:
    """How a router can be called and read: a minimal rule for each bias that its call may take.

    The error, if it returns neither logits, weights and indices nor the latter two.
    """
    names = [(num, top_k) for num in {row.num_experts: 0 for row in rows} for top_k in {row.top_k: 0 for row in rows}]
    handed = {row.selection_bias for row in rows if (row.selection_bias or "").startswith(BLOCK)}
    biases = [None, *sorted(p for p in handed if p is not None and hasattr(router.block, p.removeprefix(BLOCK)))]
    probes: tuple[Literal["flat", "batched"], ...] = ("flat", "batched")
    found: dict[str | None, RoutingRule] = {}
    failures: list[Exception] = []
    with under_test(router) as scratch:
        hidden = ordinary_inputs(scratch)
        for form in (WHOLE, ALONE):
            for bias, probe, (num_experts, top_k) in product(biases, probes, names):
                if bias in found:
                    continue
                completed = replace(form, selection_bias=bias, probe=probe, num_experts=num_experts, top_k=top_k)
                try:
                    compare_with_rule(scratch, completed, hidden)
                    found[bias] = completed
                except Exception as error:  # foreign code may raise anything
                    failures.append(error)
            if found:
                return found
    telling = (UnsupportedError, RouterContractError, Exception)
    failure = next(error for kind in telling for error in failures if isinstance(error, kind))
    return UnsupportedError(
        router.path,
        f"{type(router.module).__name__} does not have the signature that most routers share",
        got=str(failure).rstrip("."),
        expected="a forward that takes hidden states and returns logits, weights and indices",
        fix="Describe it by an adapter; see 'Add a model family' in the documentation.",
    )


def _identify(
    routers: Sequence[RouterUnderTest], call_forms: dict[str | None, RoutingRule], rows: Sequence[RoutingRule]
) -> RoutingRule:
    """The one rule that all routers of a class follow."""
    first = routers[0]
    name = type(first.module).__name__
    rules = [form for form in call_forms.values() if form.adapter is not None][:1]
    if rules and len(rows) == 1:
        raise UnsupportedError(
            first.path,
            f"{name} returns no logits, so that no rule can be checked",
            got=f"the rule '{rows[0].name}'",
            expected="no rule",
            fix="Call register_routers(model): suppress_mode 'drop' and 'zero' need none.",
        )
    if not rules:
        rules = [rule for row in rows if (rule := _called(row, call_forms, first.module)) is not None]
    forms: dict[str, list[Hashable]] = defaultdict(list)
    for router in routers:
        with under_test(router) as scratch:
            rules = _reproducing(scratch, rules, _inputs(scratch, call_forms))
            for rule in rules:
                forms[rule.name].append(compare_with_rule(scratch, rule, ordinary_inputs(scratch)).form)
    with under_test(first) as scratch:
        hidden = ordinary_inputs(scratch)
        for variant in variants(scratch, rules):
            if len(rules) > 1:
                # A change that no rule follows shows nothing: the router may have a constant instead of reading the
                # number.
                rules = [rule for rule in rules if num_matching(variant, rule, hidden) == len(hidden)] or rules
    # A config flag that the router has is evidence for a row, a missing flag against it.
    flags = {rule.name: _flag(rule, first.module) for rule in rules}
    rules = [rule for rule in rules if flags[rule.name] == max(flags.values())]
    if len({tuple(forms[rule.name]) for rule in rules}) > 1:
        raise UnsupportedError(
            first.path,
            f"several rules reproduce {name}, and they cannot be distinguished",
            got="; ".join(f"{rule.id} ({rule.name})" for rule in rules),
            expected="one",
            fix=f'State which it is: register_routers(model, rule="{rules[0].id}").',
        )
    found = rules[0]
    if found.adapter is None:
        with under_test(first) as scratch:
            # Enough tokens for a limit on an expert's tokens to have an effect.
            _reproducing(scratch, [found], ordinary_inputs(scratch).repeat(MANY, 1))
    return replace(found, when=found.when if flags[found.name] > 0 else None)


def _reproducing(router: RouterUnderTest, rules: Sequence[RoutingRule], hidden: Tensor) -> list[RoutingRule]:
    """The rules that reproduce a router; at least one."""
    matches = {rule.name: num_matching(router, rule, hidden) for rule in rules}
    found = [rule for rule in rules if matches[rule.name] == len(hidden)]
    if not found:
        best = max(matches, key=lambda name: matches[name], default="")
        raise UnsupportedError(
            router.path,
            f"no rule reproduces {type(router.module).__name__}",
            got=f"{matches[best]} of {len(hidden)} tokens by '{best}'" if best else "it has the numbers of no rule",
            expected="the router's own experts and weights, bit for bit",
            fix="Give a rule of your own, register_routers(model, rule=RoutingRule(...)); see 'Add a model family' in "
            "the documentation.",
        )
    return found


def _inputs(router: RouterUnderTest, call_forms: dict[str | None, RoutingRule]) -> Tensor:
    """Hidden states that a rule must reproduce the router on, `(tokens, hidden_size)`."""
    form = next(iter(call_forms.values()))
    hidden = ordinary_inputs(router)
    return hidden if form.adapter is not None else torch.cat([hidden, telling_inputs(router, form)])


def _called(row: RoutingRule, call_forms: dict[str | None, RoutingRule], router: nn.Module) -> RoutingRule | None:
    """A row, called and read as the router is; `None` if it is for routers of another kind."""
    form = call_forms.get(row.selection_bias if (row.selection_bias or "").startswith(BLOCK) else None)
    if form is None or (row.when is not None and getattr(router, row.when[0], row.when[1]) != row.when[1]):
        return None
    return replace(row, routers={}, num_experts=form.num_experts, top_k=form.top_k, probe=form.probe)


def _flag(rule: RoutingRule, router: nn.Module) -> int:
    if rule.when is None:
        return 0
    return 1 if hasattr(router, rule.when[0]) else -1


# The error of `find_routers` names the rule; that file may not import this one.
offer_by(_offer)
