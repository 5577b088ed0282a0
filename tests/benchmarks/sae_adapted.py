"""A LoRA for SmolLM2-135M-Instruct with an SAE in it (`adapt_to_sae`), measured with and without.

    python tests/benchmarks/sae_adapted.py --work work --texts texts --output adapted \
        [--sae work/real/runs/TopK--aux-k-2] [--tokens 102400] [--rank 16] [--seed 0]

`--work` is the folder of `sae_real_activations.py`, whose model, splits and SAEs it takes; its first lines say how
these are made. The adapter is trained on the training split, from its first token on, and measured on the first
contexts of the test split. The first position and tokens longer than 3.16 times the median keep the model's own
activations, as in the training of the SAE. It goes on where it was stopped. What is trained and measured is in
`--output`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch
from packaged_texts import CONTEXT, split_contexts
from sae_real_activations import HOOKPOINT, MASSIVE, SCORED_CONTEXTS, SPLITS
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mote import adapt_to_sae, evaluate_sae, load_sae
from hf_mote.sae.intervene import sites_of
from hf_mote.sae.training.adapt import lora_after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of sae_real_activations.py")
    parser.add_argument("--texts", type=Path, required=True, help="folder of the unpacked Debian packages")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter and the reports")
    parser.add_argument("--sae", type=Path, help="folder of the SAE; by default TopK with its auxiliary loss, seed 2")
    parser.add_argument("--tokens", type=int, default=102_400)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.work / "real"
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    sae = load_sae(options.sae or folder / "runs" / "TopK--aux-k-2").eval()
    contexts = split_contexts(options.texts, tokenizer, SPLITS)
    rows = {split: [{"input_ids": row} for row in found] for split, found in contexts.items()}
    read = {
        "hookpoint": f"{HOOKPOINT}.output",
        "context_length": CONTEXT,
        "packed": False,
        "exclude_positions": "first:1",
        "max_norm": MASSIVE,
    }

    def measured(model: object, **more: object) -> object:
        return evaluate_sae(model, sae, rows["test"][:SCORED_CONTEXTS], **read, **more)

    without = measured(model, run_folder=options.output / "run-without")
    without.save_pretrained(options.output / "without")
    _, writes = sites_of(model, sae, read["hookpoint"], "sae_adapted")
    began = time.process_time()
    adapted = adapt_to_sae(
        model,
        sae,
        rows["train"],
        lora_after(model, writes, rank=options.rank),
        max_tokens=options.tokens,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        run_folder=options.output / "run-training",
        **read,
    )
    seconds = time.process_time() - began
    adapted.save_pretrained(str(options.output / "adapter"))
    with_it = measured(adapted, with_adapter=True, run_folder=options.output / "run-with")
    with_it.save_pretrained(options.output / "with")
    sizes = [p.numel() for name, p in adapted.named_parameters() if "lora_" in name]
    sys.stdout.write(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s); {options.tokens:,} tokens, rank {options.rank}, "
        f"{sum(sizes) / 1e6:.1f} million parameters, {seconds:.0f} s of processor time\n\n"
        "| | FVU | cross entropy | recovered | KL | recovered |\n| --- | --: | --: | --: | --: | --: |\n"
        f"| the plain model | | {without.ce['clean']:.4f} | | | |\n"
    )
    for name, one in (("with the SAE", without), ("with SAE and adapter", with_it)):
        sys.stdout.write(
            f"| {name} | {one.fvu:.4f} | {one.ce['sae']:.4f} | {one.ce_recovered['zero']:.4f} | "
            f"{one.kl['sae']:.4f} | {one.kl_recovered['zero']:.4f} |\n"
        )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
