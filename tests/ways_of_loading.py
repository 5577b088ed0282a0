"""Every way of loading a model x every edit, against the oracle, as a Markdown table.

    PYTHONPATH=tests python tests/ways_of_loading.py docs/ways_of_loading.md

A way is loaded twice, the same both times: one model is edited by hooks, the forwards of the other's routers are
replaced (`router_oracle.py`). *Works* means that the logits are the oracle's, that recording counts every token, and
that the model is itself again after the removal, to the last bit. A way that must be refused is refused by an error of
the package that names the remedy, before anything is attached. Libraries that are not installed are not tried.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import loading_stubs as stubs
import torch
from router_oracle import replace_routers
from routing_cases import fields_at
from tiny_families import TINY_FAMILIES
from torch import nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import HFMoTEError

__all__ = ["STRONG_EDITS", "WAYS", "Cell", "Way", "markdown", "try_way"]

# Inputs that a choice is a tie for, as happens in 16 bits, or that choose no target say nothing: the next are tried.
PROMPTS = [torch.randint(5, 85, (2, 5), generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
DECIDED = 1e-5
LEAST_CHANGE = 0.05
# Of what an edit changes: weights are computed in another order, and whatever is quantised behind them rounds.
TOLERANCE = 2e-3

# Biases so strong that they decide the choice in whatever precision the router is loaded.
STRONG_EDITS: dict[str, dict[str, Any]] = {
    "drop": {"suppress": (1, 6)},
    "zero": {"suppress": (1, 6), "suppress_mode": "zero"},
    "reroute": {"suppress": (1, 6), "suppress_mode": "reroute"},
    "stimulate": {"stimulate": (2,)},
    "bias": {"bias": ((0, 8.0), (5, -8.0))},
}

# Wide enough for blocks of 64 weights; 32 experts, as bitsandbytes packs 32 rows at once on a CPU.
_WIDE = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "intermediate_size_mlp"), 64)
_SIZES: dict[str, dict[str, Any]] = {
    "afmoe": {**_WIDE, "num_experts": 32, "head_dim": 16},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 32, "moe_top_k": 3},
    },
    "deepseek_v3": {
        **_WIDE,
        **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 64),
        **{"qk_rope_head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 16},
        **{"n_routed_experts": 32, "n_group": 1, "topk_group": 1},
    },
    "gpt_oss": {**_WIDE, "num_local_experts": 8, "head_dim": 16},
    "jetmoe": {**_WIDE, "num_local_experts": 32, "kv_channels": 16},
    "llama4": {**_WIDE, "num_local_experts": 32, "head_dim": 16},
    "mixtral": {**_WIDE, "num_local_experts": 32, "head_dim": 16},
    "phimoe": {**_WIDE, "num_local_experts": 32},
    "qwen3_moe": {**_WIDE, "num_experts": 32, "head_dim": 16},
    "qwen3_5_moe": {**_WIDE, "num_experts": 32, "head_dim": 16},
}
# Plain linear maps in the router; routers that are linear maps; routers with a bare weight.
LINEAR = ("afmoe", "jetmoe", "dbrx")
SUBCLASS = ("llama4", "phimoe")
BARE = ("mixtral", "qwen3_moe", "deepseek_v3")
CANNOT = {"dbrx": ("drop", "zero"), "phimoe": ("stimulate",)}


def tiny(family: str) -> PreTrainedModel:
    """The tiny model of a family, in the sizes that quantisations ask for."""
    return TINY_FAMILIES[family](**_SIZES[family])


@dataclass(frozen=True)
class Way:
    """One way of loading.

    Attributes:
        name: What the table calls it.
        load: Gives a family's model, loaded that way; the same at every call.
        families: The families to try it on.
        needs: Packages, by the names they are imported by.
        refused: A word of the remedy that the error must name, where the way is refused.
        experts: Experts of a layer, where they are not what the config says.
        tolerance: Of what an edit changes, how much the logits may be off.
        elsewhere: Whether the model is known not to run that way on a CPU, or not with this transformers.
        oracle: Gives the model that the oracle is made of, where that is not loaded the same way.
        stub: What stands in for a kernel that does not run here.
    """

    name: str
    load: Callable[[str], PreTrainedModel]
    families: tuple[str, ...] = ("mixtral",)
    needs: tuple[str, ...] = ()
    refused: str | None = None
    experts: dict[int, int] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    elsewhere: bool = False
    oracle: Callable[[str], PreTrainedModel] | None = None
    stub: str | None = None


class Cell(NamedTuple):
    """What came of one way, family and edit: `works`, `refused`, `not tried` or `wrong`, and what there is to say."""

    way: str
    family: str
    edit: str
    outcome: str
    note: str


def saved(family: str, **how: Any) -> PreTrainedModel:
    """Save the tiny model and load it again with the arguments given to `from_pretrained`."""
    model = tiny(family)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, **{"dtype": torch.float32, **how}).eval()


def _quantised(make: Callable[[], Any], **how: Any) -> Callable[[str], PreTrainedModel]:
    return lambda family: saved(family, quantization_config=make(), **how)


def _bnb(**how: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**how)

    return make


def _quanto(weights: str, **how: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights=weights, **how)

    return make


def _torchao(kind: str, **how: Any) -> Callable[[], Any]:
    def make() -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, kind)(**how))

    return make


def _hqq_config() -> Any:
    from transformers import HqqConfig

    return HqqConfig(nbits=4, group_size=64)


def _hqq(nbits: int) -> Callable[[str], PreTrainedModel]:
    """HQQ's own linear maps in place of all plain ones; transformers 5.24 does not load HQQ itself."""

    def load(family: str) -> PreTrainedModel:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        model = tiny(family)
        for path, part in list(model.named_modules()):
            if type(part) is nn.Linear and not path.endswith("lm_head"):
                config = BaseQuantizeConfig(nbits=nbits, group_size=64)
                packed = HQQLinear(part, config, compute_dtype=torch.float32, device="cpu")
                model.set_submodule(path, packed)
        return model

    return load


def _offloaded(family: str) -> PreTrainedModel:
    """`device_map="auto"` with so little memory that some layers go to the disk."""
    model = tiny(family)
    folder = tempfile.mkdtemp()  # what is on the disk must be there when the model runs
    model.save_pretrained(folder)
    most = sum(parameter.nbytes for parameter in model.parameters()) * 2 // 3
    loaded = type(model).from_pretrained(
        folder, dtype=torch.float32, device_map="auto", max_memory={"cpu": most}, offload_folder=tempfile.mkdtemp()
    )
    assert any(parameter.is_meta for parameter in loaded.parameters()), "nothing was offloaded"
    return loaded.eval()


def _experts_run_by(implementation: str) -> Callable[[str], PreTrainedModel]:
    def load(family: str) -> PreTrainedModel:
        model = tiny(family)
        model.set_experts_implementation(implementation)
        return model

    return load


def _other_top_k(family: str) -> PreTrainedModel:
    """A smaller number of experts per token, set before anything is attached."""
    model = tiny(family)
    for site in find_routers(model):
        site.module.top_k = 2
    model.config.num_experts_per_tok = 2
    return model


WAYS: tuple[Way, ...] = (
    Way("float32", tiny, (*BARE, *LINEAR, *SUBCLASS)),
    Way("bfloat16", lambda family: saved(family, dtype=torch.bfloat16), BARE, tolerance=0.15),
    Way("float16", lambda family: saved(family, dtype=torch.float16), BARE, tolerance=0.02),
    Way("bitsandbytes 8 bit", _quantised(_bnb(load_in_8bit=True)), (*LINEAR, *SUBCLASS, *BARE), ("bitsandbytes",)),
    # Its CPU kernel multiplies in bfloat16, where a difference in the last bit of float32 may round another way.
    Way(
        "bitsandbytes 4 bit, fp4",
        _quantised(_bnb(load_in_4bit=True)),
        (*LINEAR, *BARE),
        ("bitsandbytes",),
        tolerance=0.02,
    ),
    Way(
        "bitsandbytes 4 bit, nf4, twice quantised",
        _quantised(_bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
        (*LINEAR, *BARE),
        ("bitsandbytes",),
        tolerance=0.02,
    ),
    Way("quanto int8", _quantised(_quanto("int8")), (*LINEAR, *BARE), ("optimum.quanto",)),
    Way("quanto int4", _quantised(_quanto("int4")), (*LINEAR, *BARE), ("optimum.quanto",)),
    Way(
        "quanto int8, routers and all",
        _quantised(_quanto("int8")),
        SUBCLASS,
        ("optimum.quanto",),
        refused="not to convert",
    ),
    Way(
        "quanto int8, routers named in modules_to_not_convert",
        _quantised(_quanto("int8", modules_to_not_convert=["router", "lm_head"])),
        SUBCLASS,
        ("optimum.quanto",),
    ),
    Way(
        "torchao int8 weight-only",
        _quantised(_torchao("Int8WeightOnlyConfig")),
        (*LINEAR, *SUBCLASS, *BARE),
        ("torchao",),
    ),
    Way(
        "torchao int8 with int8 activations",
        _quantised(_torchao("Int8DynamicActivationInt8WeightConfig")),
        (*LINEAR, *SUBCLASS, *BARE),
        ("torchao",),
        tolerance=0.05,
    ),
    Way(
        "torchao int4 weight-only",
        _quantised(_torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
        (*LINEAR, *SUBCLASS, *BARE),
        ("torchao",),
    ),
    Way(
        "torchao int4 weight-only, as packed for GPUs",
        _quantised(_torchao("Int4WeightOnlyConfig", group_size=32), dtype=torch.bfloat16),
        needs=("torchao",),
        elsewhere=True,
    ),
    Way("HQQ by transformers' HqqConfig", _quantised(_hqq_config, device_map="cpu"), needs=("hqq",), elsewhere=True),
    Way("HQQ 8 bit", _hqq(8), (*LINEAR, *BARE), ("hqq",)),
    Way("HQQ 4 bit", _hqq(4), (*LINEAR, *BARE), ("hqq",)),
    Way("GGUF, float32", lambda family: stubs.through_gguf("F32"), ("qwen3_moe",), ("gguf",)),
    Way("GGUF, Q8_0", lambda family: stubs.through_gguf("Q8_0"), ("qwen3_moe",), ("gguf",)),
    Way('device_map="auto", part on the disk', _offloaded, BARE),
    Way("experts one by one (eager)", _experts_run_by("eager"), (*BARE, "gpt_oss")),
    Way("experts by grouped_mm", _experts_run_by("grouped_mm"), (*BARE, "gpt_oss")),
    Way("experts by batched_mm", _experts_run_by("batched_mm"), (*BARE, "gpt_oss")),
    Way("experts by deepgemm", _experts_run_by("deepgemm"), elsewhere=True),
    Way("experts by sonicmoe", _experts_run_by("sonicmoe"), elsewhere=True),
    Way(
        "gpt-oss in MXFP4",
        stubs.mxfp4,
        ("gpt_oss",),
        stub="its Triton kernels, in torch",
        oracle=lambda family: TINY_FAMILIES[family](),
    ),
    Way("fused router kernel", stubs.fused_router, ("qwen3_5_moe",), ("kernels",), stub="the kernel, in torch"),
    Way(
        "fused block kernel (MegaBlocks)",
        stubs.fused_block,
        ("gpt_oss",),
        ("kernels",),
        refused="without what patches it",
        stub="the kernel, in torch",
    ),
    Way("GPTQ, AWQ, compressed-tensors: packed router", stubs.packed_linears, LINEAR, stub="the packed linear map"),
    Way("fine-grained FP8: packed router", stubs.fp8_linears, LINEAR, stub="the packed linear map"),
    Way("top_k set before attaching", _other_top_k, BARE),
    Way("remote code, taken in by register_routers", stubs.remote_registered, ("mixtral",)),
    Way("remote code, not taken in", stubs.remote, ("mixtral",), refused="register_routers"),
    Way("pruned, each layer otherwise", stubs.pruned, ("mixtral",), experts=stubs.PRUNED),
    Way("pruned, num_experts left stale", stubs.pruned_stale, ("mixtral",), refused="num_experts"),
    Way("block patched, follows its router", stubs.patched_faithful, ("mixtral",)),
    Way(
        "block patched, goes by the logits alone",
        stubs.patched_unfaithful,
        ("mixtral",),
        refused="without what patches it",
    ),
    Way("a pipeline in place of its model", stubs.in_a_pipeline, ("mixtral",), refused="Give its .model"),
)


def missing(way: Way) -> list[str]:
    """Packages that a way needs and that are not installed."""
    return [name for name in way.needs if _spec(name) is None]


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None


@torch.no_grad()
def try_way(way: Way, family: str) -> list[Cell]:
    """Try every edit on one family loaded one way."""
    if absent := missing(way):
        return [
            Cell(way.name, family, edit, "not tried", f"{', '.join(absent)} not installed") for edit in STRONG_EDITS
        ]
    try:
        model = way.load(family)
    except Exception as error:  # foreign code may fail in any way
        if not way.elsewhere:
            raise
        return _does_not_run(way, family, error)
    if way.refused is not None:
        return [_refusal(way, family, edit, model) for edit in STRONG_EDITS]
    try:
        # Once before, as quantised layers settle on a layout when they first run.
        model(input_ids=PROMPTS[0])
    except Exception as error:  # foreign code may fail in any way
        return _does_not_run(way, family, error)
    sites = find_routers(model)
    cells = []
    for name, edit in STRONG_EDITS.items():
        if name in CANNOT.get(family, ()):
            cells.append(_refusal(way, family, name, model, "What it can"))
            continue
        fields = fields_at(edit, [site.layer for site in sites])
        oracle = (way.oracle or way.load)(family)
        oracle(input_ids=PROMPTS[0])
        margins = replace_routers(oracle, family, {site.layer: site.path for site in sites}, fields, way.experts)
        for prompt in PROMPTS:
            margins.clear()
            wanted, native = oracle(input_ids=prompt).logits.float(), model(input_ids=prompt).logits
            change = float((wanted - native.float()).abs().max())
            if min(margins) > DECIDED and change > LEAST_CHANGE:
                break
        try:
            config = MoTEConfig.for_model(model, **fields)
            with apply_mote(model, config), record_routing(model) as record:
                got = model(input_ids=prompt).logits
        except HFMoTEError as error:
            cells.append(Cell(way.name, family, name, "wrong", f"refused: {error}"[:300]))
            continue
        off = float((got.float() - wanted).abs().max()) / max(change, 1e-30)
        counted = sum(int(one.counts.sum()) for one in record.maps("prompt"))
        slots = prompt.numel() * sum(site.top_k for site in sites)
        problems = [
            *([] if min(margins) > DECIDED else ["ties on every input"]),
            *([] if change > LEAST_CHANGE else ["the edit changes little"]),
            *([] if off <= way.tolerance else [f"off by {off:.2g} of what the edit changes"]),
            *([] if torch.equal(model(input_ids=prompt).logits, native) else ["not itself after the removal"]),
            # An expert without weight is not counted.
            *([] if counted == slots or (name in ("drop", "zero") and 0 < counted < slots) else ["miscounted"]),
        ]
        note = "; ".join(problems) or ("exact" if off == 0 else f"{off:.0e}")
        cells.append(Cell(way.name, family, name, "wrong" if problems else "works", note))
    return cells


def _does_not_run(way: Way, family: str, error: Exception) -> list[Cell]:
    said = " ".join(str(error).split())[:150]
    note = f"the model does not run by itself ({type(error).__name__}: {said})"
    return [Cell(way.name, family, edit, "not tried", note) for edit in STRONG_EDITS]


def _refusal(way: Way, family: str, edit: str, model: Any, remedy: str | None = None) -> Cell:
    """Whether the package refuses, names the remedy and leaves nothing behind."""
    wanted = remedy or way.refused or ""
    try:
        layers = [0, 1] if family in ("dbrx", "mixtral", "phimoe", "gpt_oss") else [1, 2]
        with apply_mote(model, MoTEConfig(**fields_at(STRONG_EDITS[edit], layers))):
            pass
    except HFMoTEError as error:
        inner = model if isinstance(model, nn.Module) else model.model
        hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in inner.modules())
        if hooks or wanted not in str(error):
            return Cell(way.name, family, edit, "wrong", f"{hooks} hooks left; {error}")
        return Cell(way.name, family, edit, "refused", str(error))
    return Cell(way.name, family, edit, "wrong", "not refused")


def markdown(cells: list[Cell]) -> str:
    """The table: a row for each way and family."""
    ways = {way.name: way for way in WAYS}
    lines = [
        f"| way of loading | family | {' | '.join(STRONG_EDITS)} |",
        f"| --- | --- |{' --- |' * len(STRONG_EDITS)}",
    ]
    notes: list[str] = []
    for way, family in dict.fromkeys((cell.way, cell.family) for cell in cells):
        row = [cell for cell in cells if (cell.way, cell.family) == (way, family)]
        shown = []
        for cell in row:
            if cell.outcome in ("refused", "wrong") and cell.note not in notes:
                notes.append(cell.note)
            mark = f" [{notes.index(cell.note) + 1}]" if cell.note in notes else ""
            shown.append(f"works ({cell.note})" if cell.outcome == "works" else f"{cell.outcome}{mark}")
        if all(cell.outcome == "not tried" for cell in row):
            shown = [f"not tried: {row[0].note}", *[""] * (len(row) - 1)]
        stub = f" (stubbed: {ways[way].stub})" if ways[way].stub else ""
        lines.append(f"| {way}{stub} | {family} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *[f"{number}. {note}" for number, note in enumerate(notes, 1)]])


def versions() -> str:
    """The versions of what was run."""
    names = (
        "torch",
        "transformers",
        "accelerate",
        "bitsandbytes",
        "optimum-quanto",
        "torchao",
        "hqq",
        "gguf",
        "kernels",
    )
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


HEAD = """\
# Ways of loading

Made by `tests/ways_of_loading.py` on a CPU with tiny random models: {versions}.

*Works*: the logits under the edit are those of a second model, loaded the same way, whose routers' forwards were
replaced by a reference in numpy; recording counts every token; after the removal the model is itself again, to the
last bit. In brackets, how far the logits are off the oracle's, as a share of what the edit changes.

*Refused*: by an error that names the remedy (below the table), with nothing left attached.

*Not tried*: not installed, or the model does not run that way by itself.
"""


def main() -> int:
    """Run all ways, or those whose name contains a word, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="where to write the table; the terminal without it")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of the ways to run")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    cells: list[Cell] = []
    for way in WAYS:
        if any(part in way.name for part in given.only):
            for family in way.families:
                found = try_way(way, family)
                cells += found
                print(way.name, family, *dict.fromkeys(f"{one.outcome} {one.note[:40]}" for one in found), sep=" | ")  # noqa: T201
    text = f"{HEAD.format(versions=versions())}\n{markdown(cells)}\n"
    if given.file is not None:
        given.file.parent.mkdir(exist_ok=True)
        given.file.write_text(text, encoding="utf-8")
    wrong = [cell for cell in cells if cell.outcome == "wrong"]
    for cell in wrong:
        print("WRONG", *cell, sep=" | ", file=sys.stderr)  # noqa: T201
    print(f"{len(cells)} tried, {len(wrong)} wrong")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
