"""Steering a small model by one latent of an SAE, against random latents of like density.

    python tests/benchmarks/sae_steering.py {capitals,code} --model MODEL --sae SAE --texts FOLDER --output FOLDER

`capitals`: do answers get words in capitals? `code`: do they turn to code? Latents are found on texts that the
evaluation does not use: the three that best tell tokens of the kind (in capitals; in Python's sources) from all others
in manual pages, the handbook and sources, by F1 of being active. Latent and dose are chosen on eight questions that
the evaluation does not ask. Whatever comes out is reported.

MODEL and SAE are folders, as `sae_real_activations.py` writes them in its `--work` folder (`real/model` and
`real/runs/TopK--aux-k-0`), or what `hf-mote sae train` writes; `--texts` is its folder, too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from packaged_texts import code, english, read
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
FACTORS = (1.0, 2.0, 3.0, 4.0, 8.0)  # times the latent's mean where it is active
LATENTS = 3
# So many tokens count as active elsewhere, so that a latent that is active once is not the best.
RARE = 20


class Behaviour(NamedTuple):
    """What is steered towards: which answers have it, and which tokens of a text are of its kind."""

    answer: str
    of_kind: Callable[[str, bool], bool]


BEHAVIOURS = {
    # Two words of three capitals or more.
    "capitals": Behaviour(
        r"(?s)\b[A-Z]{3,}\b.*\b[A-Z]{3,}\b", lambda token, _: bool(re.fullmatch(r" ?[A-Z]{2,}", token))
    ),
    "code": Behaviour(
        r"```|\bimport \w|\bdef \w|\bclass \w+[(:]|\bself\b|\breturn\b|>>>|\w+\(\w*\):|\bprint\(",
        lambda _, in_code: in_code,
    ),
}


class Activity(NamedTuple):
    """Of each latent: F1 of being active as a sign of the kind, and its mean where it is active."""

    f1: torch.Tensor
    precision: torch.Tensor
    recall: torch.Tensor
    mean: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviour", choices=list(BEHAVIOURS))
    for name in ("model", "sae", "texts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=15_000, help="of code and of prose")
    arguments = parser.parse_args()
    name, behaviour = arguments.behaviour, BEHAVIOURS[arguments.behaviour]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    sae = load_sae(arguments.sae).train(False)
    prose = texts_of(english(arguments.texts))
    found = activity(model, sae, tokenizer, behaviour, prose, texts_of(code(arguments.texts)), arguments.tokens)
    questions = [f"Tell me in a few sentences about {thing}." for thing in THINGS]
    choosing, asked = questions[:8], questions[8:]
    judge = RegexJudge({name: behaviour.answer}, default="other")
    tried = []
    for latent in found.f1.argsort(descending=True)[:LATENTS].tolist():
        mean = float(found.mean[latent])
        for factor in FACTORS:
            with steer(model, sae, {latent: factor * mean}, scope="generation"):
                labels = classify(judge, choosing, answers(model, tokenizer, choosing))
            # Of equal ones the smaller dose.
            tried.append((labels.count(name), -factor, latent, mean))
            show(
                f"latent {latent} (precision {found.precision[latent]:.2f}, recall {found.recall[latent]:.2f}), "
                f"+{factor:g} x {mean:.3g}: {labels.count(name)} of {len(choosing)}",
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
        texts=prose[-4:],
        max_new_tokens=40,
        batch_size=28,
        progress=False,
    )
    report.save_pretrained(arguments.output)
    config.save_pretrained(arguments.output / "config")
    show(report.verdict)
    values = {
        "latent": latent, "added": -factor * mean, "dose": report.dose, "controls": report.controls,
        "side_effects": str(report.side_effects), "p": report.p_value,
    }  # fmt: skip
    show(json.dumps(values, indent=1))
    for prompt, before, after in islice(zip(asked, report.responses_before, report.responses_after, strict=True), 4):
        show(f"{prompt}\n  plain:   {before!r}\n  steered: {after!r}")


def texts_of(paths: object) -> list[str]:
    """The beginnings of some documents, the same ones at every call."""
    files = sorted(paths)  # type: ignore[call-overload]
    random.Random(0).shuffle(files)
    return [text[:4000] for path in files[:60] if (text := read(path)).strip()]


@torch.no_grad()
def activity(
    model: torch.nn.Module,
    sae: SAEModel,
    tokenizer: object,
    behaviour: Behaviour,
    prose: list[str],
    sources: list[str],
    most: int,
) -> Activity:
    """How well each latent tells the tokens of the kind from others, in so many tokens of prose and of sources."""
    point, _ = sites_of(model, sae, None, "activity")
    number = sae.config.num_latents
    active, total, sizes = torch.zeros(2, number), torch.zeros(number), [0, 0]
    for in_code, texts in ((False, prose), (True, sources)):
        reader = iter(Sequences(tokenizer, texts, text_column="text", context_length=256, packed=True))
        tokens = 0
        while tokens < most and (rows := list(islice(reader, 8))):
            ids, mask = batch_of(rows)
            kept = mask.bool()
            latents = sae.encode(activations_of(model, ids, mask, [point])[point.name][kept])
            kind = torch.tensor([behaviour.of_kind(tokenizer.decode(token), in_code) for token in ids[kept].tolist()])  # type: ignore[attr-defined]
            for one in (0, 1):
                active[one] += (latents[kind == bool(one)] > 0).sum(0)
                sizes[one] += int((kind == bool(one)).sum())
            total += latents.sum(0)
            tokens += len(latents)
    precision, recall = active[1] / (active.sum(0) + RARE), active[1] / max(sizes[1], 1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return Activity(f1, precision, recall, total / active.sum(0).clamp(min=1))


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
