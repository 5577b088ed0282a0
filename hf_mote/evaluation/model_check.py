"""`check_model`: tests all features of the package on the user's own model.

Nothing is assumed of a family: routers are run and compared with the definitions of the edits, generations are
recorded and counted, and logits must be unchanged after a removal. The result is a table, to read or to paste into a
report.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import transformers
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import DataError, HFMoTEError, LivenessError, ModelMismatchError, UnsupportedError
from hf_mote.evaluation.edit_checks import BIAS, COPIED, EDITS, TriedEdit, differs_from_copy
from hf_mote.evaluation.router_copies import CopiedEdit, on_a_copy
from hf_mote.files import write_json
from hf_mote.generation.asking import Chat
from hf_mote.generation.decoding import pad_token_of
from hf_mote.generation.prompts import padded
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.passes.forward import DecoderParticipant, Forward
from hf_mote.progress import progress_bar
from hf_mote.routing.recording.record import record_routing
from hf_mote.routing.router_hook import WeightProbe, attach_to_routers
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.packed import feed_of, packed_parts
from hf_mote.routing.sites.replaced import replaced_forward
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.self_test import probe_args, self_test
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import adapter_for, refusals_of
from hf_mote.version import __version__

__all__ = ["CheckRow", "ModelCheck", "check_model"]

PROMPTS = ("The capital of France is", "Name three colours, and say in one sentence which of them you like best.")
PROBES = 64  # hidden states that each router is tried on
PATCHED = 10  # experts that are suppressed where costs are measured


class CheckRow(NamedTuple):
    """One test.

    Attributes:
        name (`str`): Its name.
        passed (`bool`, *optional*): Whether it holds; `None` for information only.
        detail (`str`): The numbers, or the error.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class ModelCheck:
    """What [`check_model`] found.

    Attributes:
        model (`str`): The model's class and type.
        rows (`tuple[CheckRow, ...]`): What was tried, in order.
        versions (`dict`): Of the libraries, Python and the machine.
    """

    model: str
    rows: tuple[CheckRow, ...]
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return all(row.passed is not False for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-native values."""
        rows = [row._asdict() for row in self.rows]
        return {"model": self.model, "passed": self.passed, "rows": rows, "versions": dict(self.versions)}

    def to_markdown(self) -> str:
        """Return a table that can be pasted into a report."""
        lines = [f"`{self.model}`: {'all holds' if self.passed else 'a test failed'}", ""]
        lines += ["| | tried | found |", "| --- | --- | --- |"]
        lines += [
            f"| {_MARKS[row.passed]} | {row.name} | {row.detail.replace('|', chr(92) + '|')} |" for row in self.rows
        ]
        lines += ["", ", ".join(f"{name} {version}" for name, version in self.versions.items())]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a JSON file."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [self.model, *(f"{_MARKS[row.passed]:4} {row.name:{width}}  {row.detail}" for row in self.rows)]
        return "\n".join(lines)


_MARKS = {True: "ok", False: "FAIL", None: "-"}


def check_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 6,
    rounds: int = 5,
    progress: bool = True,
) -> ModelCheck:
    """Test all features of the package on a model, and return the results.

    Tried are: whether routers are found and follow their rules bit for bit; whether prompt and generated tokens are
    distinguished in generations alone, in a padded batch and without a cache; whether continuous batching is refused
    where it cannot be right; what each edit does to a router of each kind, against its definition; whether logits are
    the same to the last bit after everything was taken off; and what patching and recording cost.

    The model is not changed. A failure is a row of the result, not an error.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model, as it was loaded.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`Sequence[str]`, *optional*):
            Two or more texts of different lengths.
        max_new_tokens (`int`, *optional*, defaults to 6):
            Tokens that are generated for each.
        rounds (`int`, *optional*, defaults to 5):
            Paired runs whose median is the cost of patching; 0 to leave it out.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`ModelCheck`]: `.passed`, `.rows`, `.to_markdown()`, `.save(path)`.

    Raises:
        [`DataError`]: if there are fewer than two prompts.

    Example:

    ```python
    from hf_mote import check_model, load_organism

    organism = load_organism("refusal")
    found = check_model(organism.model, organism.tokenizer, rounds=0, progress=False)
    assert found.passed
    ```
    """
    if isinstance(prompts, str) or len(prompts) < 2:
        raise DataError(
            "check_model.prompts", "too few to make a padded batch", got=repr(prompts), expected="2 or more"
        )
    rows: list[CheckRow] = []
    parts = _parts(model, tokenizer, prompts, max_new_tokens, rounds)
    device = getattr(model, "device", torch.device("cpu"))
    with (
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        progress_bar(total=len(parts), desc="checking", disable=not progress) as bar,
    ):
        was_training = model.training
        model.eval()
        try:
            for name, part in parts.items():
                rows += _tried(name, part)
                bar.update()
                if name == "routers" and rows[-1].passed is False:
                    break  # without routers there is nothing else to try
        finally:
            model.train(was_training)
    config = getattr(model, "config", None)
    versions = {
        "hf_mote": __version__,
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": str(getattr(model, "device", "unknown")),
    }
    kind = getattr(config, "model_type", "unknown")
    return ModelCheck(f"{type(model).__name__} ({kind})", tuple(rows), versions)


def _parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new: int, rounds: int
) -> dict[str, Callable[[], Iterator[CheckRow]]]:
    encoded: list[list[int]] = []
    routed = RoutedModel(model)

    def ids() -> list[list[int]]:
        if not encoded:
            encoded.extend(Chat(tokenizer).encode(prompts, "check_model.prompts"))
        return encoded

    pad = pad_token_of(tokenizer)
    parts: dict[str, Callable[[], Iterator[CheckRow]]] = {
        "routers": lambda: _routers(routed),
        "self-test": lambda: _self_tests(routed),
        "generations": lambda: _generations(routed, ids(), pad, new),
        "continuous batching": lambda: _continuous_batching(model, ids()),
        "edits": lambda: _edits(routed),
        "removal": lambda: _removal(routed, ids(), pad),
    }
    if rounds:
        parts["cost"] = lambda: _cost(routed, ids(), pad, new, rounds)
    return parts


def _tried(name: str, part: Callable[[], Iterator[CheckRow]]) -> list[CheckRow]:
    """Rows of a part; any error of this package, transformers or the model becomes a failed row."""
    rows: list[CheckRow] = []
    try:
        rows.extend(part())
    except HFMoTEError as error:
        rows.append(CheckRow(name, False, str(error)))
    except Exception as error:
        rows.append(CheckRow(name, False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))
    return rows


def _routers(routed: RoutedModel) -> Iterator[CheckRow]:
    sites = routed.sites
    experts = sum(site.num_experts for site in sites)
    yield CheckRow(
        "routers", True, f"{len(sites)}, in layers {sites[0].layer} to {sites[-1].layer}; {experts} experts"
    )
    for rule, number in Counter(site.rule.name for site in sites).items():
        kinds = sorted({f"top {site.top_k} of {site.num_experts}" for site in sites if site.rule.name == rule})
        yield CheckRow("rule", None, f"{rule}: {number} routers, {', '.join(kinds)}")
    classes = ", ".join(sorted({type(site.module).__name__ for site in sites}))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for site in sites for p in site.module.parameters()})
    yield CheckRow("router class", None, f"{classes}, {', '.join(dtypes)}")
    packed = sorted({kind for site in sites for kind in packed_parts(site.module).values()})
    if packed:
        yield CheckRow("quantised routers", None, f"{', '.join(packed)}: a quantised router chooses other experts")
    for what, attribute in (("router", "module"), ("block", "block")):
        layers: dict[str, list[int]] = {}
        for site in sites:
            part = getattr(site, attribute)
            by = None if part is None else replaced_forward(part)
            if by is not None:
                layers.setdefault(by, []).append(site.layer)
        for by, where in sorted(layers.items()):
            detail = f"in {len(where)} of {len(sites)} layers ({_ranges(where)}) the forward is {by}"
            yield CheckRow(f"replaced {what}s", None, detail)
    model: Any = routed.model
    config = model.config
    facts = {
        "quantisation": getattr(getattr(config, "quantization_config", None), "quant_method", None),
        "attention": getattr(config, "_attn_implementation", None),
        "experts": getattr(config, "_experts_implementation", None),
        "device map": len(set(getattr(model, "hf_device_map", {}).values())) or None,
    }
    yield CheckRow(
        "loaded as", None, ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    )


def _ranges(layers: Sequence[int]) -> str:
    """Numbers in words, as in `0, 2 to 5`."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in found)


def _self_tests(routed: RoutedModel) -> Iterator[CheckRow]:
    sites = routed.sites
    skipped = sum(self_test(site) is None for site in sites)
    detail = (
        f"{len(sites) - skipped} of {len(sites)} routers give their own routing from their own logits, bit for bit"
    )
    yield CheckRow(
        "self-test", None if skipped else True, detail + (", the others cannot run alone" if skipped else "")
    )


def _generations(routed: RoutedModel, encoded: list[list[int]], pad: int, new: int) -> Iterator[CheckRow]:
    model: Any = routed.model
    if not getattr(model, "can_generate", bool)():
        yield CheckRow("phases", None, "the model does not generate text")
        return
    together = padded(encoded, pad, side="left", device=model.device)
    alone = [padded([row], pad, side="left", device=model.device) for row in encoded]
    lengths = [len(row) for row in encoded]
    yield _generation(routed, "phases, one by one", alone, [[length] for length in lengths], new)
    yield _generation(routed, "phases, padded batch", [together], [lengths], new)
    yield _generation(routed, "phases, no cache", [together], [lengths], new, use_cache=False)
    yield _generation(routed, "phases, sampled", [together], [lengths], new, do_sample=True)


def _generation(
    routed: RoutedModel,
    name: str,
    batches: Sequence[Mapping[str, Tensor]],
    lengths: Sequence[Sequence[int]],
    new: int,
    **how: Any,
) -> CheckRow:
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, **how}
    model: Any = routed.model
    with record_routing(model, eos_token_id=[]) as record:
        for batch in batches:
            output = model.generate(**batch, pad_token_id=0, **settings)
            record.check_generated(output, batch["input_ids"].shape[1])
    wanted = {"prompt": [float(n) for batch in lengths for n in batch]}
    wanted["generation"] = [float(new - 1)] * len(wanted["prompt"])
    chosen = sum(site.top_k for site in routed.sites)
    for phase in ("prompt", "generation"):
        counts, _, tokens = record.stacked(phase, routing="native")
        if tokens.tolist() != wanted[phase]:
            detail = f"{tokens.tolist()} tokens counted, {wanted[phase]} read"
            return CheckRow(name, False, f"{phase}: {detail}")
        if counts.sum(dim=(1, 2)).tolist() != [count * chosen for count in wanted[phase]]:
            return CheckRow(name, False, f"{phase}: not every router was counted for every token")
    detail = f"{sum(wanted['prompt']):.0f} prompt and {sum(wanted['generation']):.0f} generated tokens counted as such"
    return CheckRow(name, True, detail)


def _continuous_batching(model: PreTrainedModel, encoded: list[list[int]]) -> Iterator[CheckRow]:
    if not hasattr(model, "generate_batch"):
        yield CheckRow("continuous batching", None, "not there")
        return
    with record_routing(model):
        try:
            model.generate_batch(encoded)  # type: ignore[operator]
        except UnsupportedError:
            yield CheckRow("continuous batching", True, "recording it is refused before anything runs")
            return
    yield CheckRow("continuous batching", False, "recording it is not refused, although its rows are not sequences")


def _edits(routed: RoutedModel) -> Iterator[CheckRow]:
    model: Any = routed.model
    sites = routed.sites
    kinds: dict[tuple[Any, ...], list[RouterSite]] = {}
    for site in sites:
        kinds.setdefault((type(site.module), site.num_experts, site.top_k, site.rule.name), []).append(site)
    chosen = {site.path: site for same in kinds.values() for site in (same[0], same[len(same) // 2], same[-1])}
    for name, (changes, holds) in EDITS.items():
        refused: dict[str, None] = {}
        wrong: list[str] = []
        layers: list[int] = []
        copies = 0
        for site in chosen.values():
            if self_test(site) is None:
                continue
            try:
                tried = _try(model, sites, site, changes, COPIED.get(name))
            except (ModelMismatchError, UnsupportedError) as error:
                refused[str(error)] = None
                continue
            fault = holds(tried) or differs_from_copy(tried, name)
            copies += tried.copied is not None
            if fault is not None:
                wrong.append(f"layer {site.layer}, expert {tried.expert}: {fault}")
            layers.append(site.layer)
        if wrong:
            yield CheckRow(f"edit: {name}", False, "; ".join(wrong))
        elif layers:
            detail = f"as defined, in layers {', '.join(map(str, sorted(layers)))}"
            if name in COPIED:
                detail += f"; {copies} of {len(layers)} equal a copy whose own code decides on changed logits"
            yield CheckRow(f"edit: {name}", True, detail)
        else:
            reason = "; ".join(refused) or "no router can run alone"
            yield CheckRow(f"edit: {name}", None, f"refused: {reason}" if refused else reason)


def _try(
    model: PreTrainedModel,
    sites: Sequence[RouterSite],
    site: RouterSite,
    changes: Callable[[int, int], dict[str, Any]],
    copied: CopiedEdit | None = None,
) -> TriedEdit:
    """Run one router without and with an edit of the expert that it chooses most.

    Raises:
        [`ModelMismatchError`], [`UnsupportedError`]: if the router cannot do such an edit.
    """
    with align_module_device(site.module):
        adapter = self_test(site)
        feed = feed_of(site.module, site.block)
        hidden = torch.randn(PROBES, feed.width, generator=torch.Generator().manual_seed(1))
        args = probe_args(site, hidden.to(feed.device, feed.dtype))
        output = site.module.forward(*args)
        adapter = adapter or adapter_for(site, output)
        logits, native = adapter.read(output)
        used = native.indices[native.weights != 0]
        expert = int(used.bincount(minlength=site.num_experts).argmax())
        look = _Look()
        with (
            apply_mote(model, MoTEConfig(**changes(site.layer, expert))),
            attach_to_routers(
                RoutedModel(model, sites), DecoderParticipant(), lambda other: look if other is site else None
            ),
        ):
            site.module(*args)
        by_copy = None if copied is None else on_a_copy(site, adapter, args, expert, copied, bias=BIAS)
    if look.seen is None:
        raise LivenessError(site.path, "its hook did not run", expected="one run", fix="Report how it was loaded.")
    return TriedEdit(site, logits, native, look.seen, expert, by_copy)


class _Look(WeightProbe):
    """Observes the applied routing."""

    seen: Routing | None = None

    def probe(self, forward: Forward | None, routing: Routing) -> Tensor:
        self.seen = routing
        return routing.weights


def _removal(routed: RoutedModel, encoded: list[list[int]], pad: int) -> Iterator[CheckRow]:
    model: Any = routed.model
    batch = padded(encoded, pad, side="left", device=model.device)
    if not hasattr(model(**batch), "logits"):
        yield CheckRow("removal", None, "it gives no logits to compare")
        return
    before, again = model(**batch).logits, model(**batch).logits
    site = routed.sites[0]
    modes: tuple[Literal["drop", "zero", "reroute"], ...] = ("drop", "zero", "reroute")
    can = next(mode for mode in modes if mode not in refusals_of(site))
    config = MoTEConfig(suppress=[[site.layer, 0]], suppress_mode=can)
    with apply_mote(model, config), record_routing(model):
        patched = model(**batch).logits
    with apply_mote(model, dataclasses.replace(config, strength=0)):
        neutral = model(**batch).logits
    after = model(**batch).logits
    if not torch.equal(before, again):
        detail = "the model does not give the same logits twice by itself, so that bits cannot be compared"
        yield CheckRow("removal", None, detail)
        return
    bits = "logits are the same to the last bit"
    yield CheckRow(
        "strength 0", torch.equal(neutral, before), bits if torch.equal(neutral, before) else "logits differ"
    )
    yield CheckRow("removal", torch.equal(after, before), bits if torch.equal(after, before) else "logits differ")
    finite = bool(patched.isfinite().all())
    yield CheckRow("patched logits", finite, "finite" if finite else "not finite")


def _cost(routed: RoutedModel, encoded: list[list[int]], pad: int, new: int, rounds: int) -> Iterator[CheckRow]:
    model: Any = routed.model
    batch = padded(encoded[:1], pad, side="left", device=model.device)
    sites = routed.sites
    most = {site.layer: site.num_experts - site.top_k for site in sites}
    targets = [[site.layer, e] for e in range(PATCHED) for site in sites if e < most[site.layer]][:PATCHED]
    config = MoTEConfig(suppress=sorted(targets))
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def seconds() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(**batch, **settings)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds()
    ratios: dict[str, list[float]] = {"patching": [], "recording": []}
    for _ in range(rounds):
        for name in ratios:
            plain = seconds()
            with apply_mote(model, config) if name == "patching" else record_routing(model):
                seconds()  # the first pass makes more checks
                ratios[name].append(seconds() / plain)
    for name, found in ratios.items():
        low, high = min(found), max(found)
        detail = f"{statistics.median(found):.2f} x a plain generation [{low:.2f}, {high:.2f}], {rounds} pairs"
        yield CheckRow(f"cost of {name}", None, detail)
    if torch.cuda.is_available():
        yield CheckRow("memory", None, f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most on the device")
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    yield CheckRow("memory", None, f"{peak / 2**30:.2f} GiB at most in the process")
