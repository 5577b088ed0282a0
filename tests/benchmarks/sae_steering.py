"""Steering a small model by one latent of an SAE, against random latents of like density: does it turn to code?

The latent is found on training texts: of those that are active in Python sources and hardly in prose, the one that is
active most. The dose is chosen on questions that the evaluation does not ask. Whatever comes out is reported.

    python tests/benchmarks/sae_steering.py --model MODEL --sae SAE --code FOLDER --prose FOLDER --output FOLDER

MODEL and SAE are folders, as `sae_real_activations.py` writes them in its `--work` folder (`real/model` and
`real/runs/TopK--aux-k-0`), or what `hf-mote sae train` writes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mote import RegexJudge, SAEModel, SteeringConfig, evaluate_mote, load_sae, steer
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses
from hf_mote.judges.judge import classify
from hf_mote.sae.intervene import sites_of
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import Sequences, batch_of

THINGS = [
    *("a lighthouse", "a volcano", "honey", "the moon", "a bicycle", "bread", "a river", "a violin", "snow"),
    *("a library", "tea", "a bridge", "gravity", "a garden", "chess", "a whale", "paper", "the sun", "a castle"),
    *("a train", "salt", "a forest", "cheese", "a clock", "glass", "a desert", "rain", "a market", "an orchestra"),
    *("a harbour", "silk", "a museum", "ice", "a farm", "a dream", "a holiday"),
]
CODE = r"```|\bimport \w|\bdef \w|\bclass \w+[(:]|\bself\b|\breturn\b|>>>|\w+\(\w*\):|\bprint\("
TAG = re.compile(r"<script.*?</script>|<style.*?</style>|<[^>]*>", re.DOTALL)
FACTORS = (1.0, 2.0, 4.0, 8.0)  # times the latent's mean where it is active


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "sae", "code", "prose", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=20_000, help="of code and of prose")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    sae = load_sae(arguments.sae).train(False)
    code = activity(model, sae, tokenizer, texts_of(arguments.code, ".py"), arguments.tokens)
    prose = activity(model, sae, tokenizer, texts_of(arguments.prose, ".html", ".txt", ""), arguments.tokens)
    # Share of tokens of code less ten times that of prose: active there, and not here.
    score = code[0] - 10 * prose[0]
    order = score.argsort(descending=True)[:3].tolist()
    questions = [f"Tell me in a few sentences about {thing}." for thing in THINGS]
    choosing, asked = questions[:8], questions[8:]
    judge = RegexJudge({"code": CODE}, default="prose")
    tried = []
    for latent in order:
        mean = float(code[1][latent])
        for factor in FACTORS:
            with steer(model, sae, {latent: factor * mean}, scope="generation"):
                labels = classify(judge, choosing, answers(model, tokenizer, choosing))
            tried.append((labels.count("code"), -factor, latent, mean))
            show(
                f"latent {latent} (in {code[0][latent]:.1%} of code, {prose[0][latent]:.2%} of prose), "
                f"+{factor * mean:.3g}: {labels.count('code')} of {len(choosing)}",
            )
    _, factor, latent, mean = max(tried)
    config = SteeringConfig.for_sae(sae, {latent: -factor * mean}, path=str(arguments.sae), scope="generation")
    report = evaluate_mote(
        model,
        tokenizer,
        config.bind(sae),
        asked,
        judge,
        num_controls=arguments.controls,
        strengths=[0.25, 0.5, 2.0],
        texts=list(islice(texts_of(arguments.prose, ".html", ".txt", ""), 4)),
        max_new_tokens=40,
        batch_size=28,
        progress=False,
    )
    report.save_pretrained(arguments.output)
    config.save_pretrained(arguments.output / "config")
    show(report.verdict)
    found = {
        "latent": latent, "added": -factor * mean, "dose": report.dose, "controls": report.controls,
        "side_effects": str(report.side_effects), "p": report.p_value,
    }  # fmt: skip
    show(json.dumps(found, indent=1))
    for prompt, before, after in islice(zip(asked, report.responses_before, report.responses_after, strict=True), 4):
        show(f"{prompt}\n  plain:   {before!r}\n  steered: {after!r}")


def texts_of(folder: Path, *suffixes: str) -> list[str]:
    """Texts of a folder's files, the same ones at every call."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    random.Random(0).shuffle(files)
    read = (path.read_text(encoding="utf-8", errors="ignore") for path in files[:60])
    return [text[:4000] for one in read if (text := TAG.sub(" ", one) if ".html" in suffixes else one).strip()]


def activity(
    model: torch.nn.Module, sae: SAEModel, tokenizer: object, texts: list[str], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of tokens on which each latent is active, and its mean there."""
    point, _ = sites_of(model, sae, None, "activity")
    reader = iter(Sequences(tokenizer, texts, text_column="text", context_length=256, packed=True))
    count, total, tokens = torch.zeros(sae.config.num_latents), torch.zeros(sae.config.num_latents), 0
    while tokens < most and (rows := list(islice(reader, 8))):
        ids, mask = batch_of(rows)
        hidden = activations_of(model, ids, mask, [point])[point.name][mask.bool()]
        with torch.no_grad():
            latents = sae.encode(hidden)
        count += (latents > 0).sum(0)
        total += latents.sum(0)
        tokens += len(hidden)
    return count / tokens, total / count.clamp(min=1)


def answers(model: object, tokenizer: object, prompts: list[str]) -> list[str]:
    found = [""] * len(prompts)
    asked = generate_responses(model, Chat(tokenizer), prompts, Decoding(max_new_tokens=40))  # type: ignore[arg-type]
    for positions, texts in asked:
        for position, text in zip(positions, texts, strict=True):
            found[position] = text
    return found


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
