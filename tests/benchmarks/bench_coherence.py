"""Which measure tells incoherent text from right answers: those that were tried, and the one that is used.

    python tests/benchmarks/bench_coherence.py [--seeds 2]

Organisms whose carriers cannot go without breaking the text ("trap" variants of the shipped ones), by as many seeds.
For each: 30 held-out questions answered without the carriers (incoherent text), and without the carriers and their
traps (right answers, or other German names in the second organism); and three kinds of text made from the right
answers: random tokens, the first word over and over, and the words shuffled. A measure's limit is the 95 % quantile of
what it says of the untouched model's own answers to 60 other questions. Columns: share of right answers above the
limit (false alarms), shares of each kind of incoherent text above it, and the least AUROC of the broken model's
responses against right answers.
The last row holds the two measures together against `limits_of` these same answers; `evaluate_mote` also takes the
answers to its own prompts, and asks besides whether the model is less sure of all it writes.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import transformers

from hf_mote import MoTEConfig, apply_mote, load_organism
from hf_mote.evaluation.coherence import incoherent, limits_of
from hf_mote.generation.asking import Chat
from hf_mote.generation.certainty import Signs
from hf_mote.generation.prompts import padded
from hf_mote.organisms import Organism, make_variant
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.scoring import auroc

Array = npt.NDArray[np.float64]
NUM_ASKED = 30
NUM_CONTEXTS = 6
QUANTILE = 0.95
KINDS = ("broken model", "random tokens", "one word", "shuffled")


@torch.no_grad()
def surprises(organism: Organism, prompts: Sequence[str], responses: Sequence[str]) -> list[Array]:
    """Return -log p of each token of the responses, after the prompts."""
    questions = Chat(organism.tokenizer).encode(prompts)
    rows, found = [], []
    for question, response in zip(questions, responses, strict=True):
        rows.append([*question, *tokens_of(organism, response)])
    batch = padded(rows, 0, side="right", device=organism.model.device)
    logs = organism.model(**batch, use_cache=False).logits.float().log_softmax(-1)
    for place, (question, row) in enumerate(zip(questions, rows, strict=True)):
        said = torch.tensor(row[len(question) :])
        chosen = logs[place, len(question) - 1 : len(row) - 1].gather(-1, said[:, None])[:, 0]
        found.append(-chosen.double().numpy())
    return found


def tokens_of(organism: Organism, text: str) -> list[int]:
    return list(organism.tokenizer(text, add_special_tokens=False)["input_ids"]) or [1]


def measures(
    organism: Organism,
    config: MoTEConfig,
    prompts: Sequence[str],
    responses: Sequence[str],
    references: tuple[Sequence[str], Sequence[str]],
) -> dict[str, Array]:
    """Return what each measure says of each response; more is more like incoherent text."""
    own = responses is references[1]
    plain = surprises(organism, prompts, responses)
    contexts = []
    draw = random.Random(0)
    for _ in range(NUM_CONTEXTS):
        places = [
            draw.choice([p for p in range(len(references[0])) if not own or p != i]) for i in range(len(prompts))
        ]
        contexts.append(surprises(organism, [references[0][place] for place in places], responses))
    with apply_mote(organism.model, config):
        changed = surprises(organism, prompts, responses)
    said = [tokens_of(organism, text) for text in responses]
    known = [tokens_of(organism, text) for text in references[1]]
    single = Counter(token for row in known for token in row)
    pairs = Counter(pair for row in known for pair in zip(row, row[1:], strict=False))
    total, size = sum(single.values()), len(organism.tokenizer)
    usual = float(np.median([len(row) for row in known]))

    def unigram(row: list[int]) -> float:
        out = Counter(row) if own else Counter()
        left = total - sum(out.values()) + 0.5 * size
        return -float(np.mean([math.log((single[t] - out[t] + 0.5) / left) for t in row]))

    def unseen(row: list[int]) -> float:
        mine = list(zip(row, row[1:], strict=False))
        out = Counter(mine) if own else Counter()
        return float(np.mean([pairs[pair] <= out[pair] for pair in mine])) if mine else 0.0

    return {
        "perplexity under the untouched model": np.array([one.mean() for one in plain]),
        "the same, median token": np.array([np.median(one) for one in plain]),
        "the same, after other prompts": np.mean([[one.mean() for one in context] for context in contexts], axis=0),
        "the same, best of the other prompts": np.min([[one.mean() for one in c] for c in contexts], axis=0),
        "**perplexity under the model that wrote it**": np.array([one.mean() for one in changed]),
        "unigrams of the untouched answers": np.array([unigram(row) for row in said]),
        "share of unseen token pairs": np.array([unseen(row) for row in said]),
        "compressibility": -np.array([len(zlib.compress(t.encode())) / max(1, len(t.encode())) for t in responses]),
        "**repeated token pairs**": np.array([repeated(row) for row in said]),
        "length": np.array([abs(math.log(len(row) / usual)) for row in said]),
    }


def repeated(row: list[int]) -> float:
    pairs = list(zip(row, row[1:], strict=False))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def case(name: str, seed: int) -> dict[str, dict[str, float]]:
    """Return the figures of each measure on one organism."""
    base = load_organism(name)
    carriers = list(base.planted)
    organism = make_variant("trap", base, seed=seed)
    draw = random.Random(seed)
    held = organism.prompts["heldout"]
    asked = draw.sample(held["sensitive"], NUM_ASKED)
    others = [*draw.sample(held["neutral"], NUM_ASKED), *draw.sample(held["unrelated"], NUM_ASKED)]
    both, one = (
        MoTEConfig(suppress=sorted(list(pair) for pair in pairs))
        for pairs in ([*carriers, *organism.decoys], carriers)
    )
    references = (others, respond(organism, others))
    with apply_mote(organism.model, both):
        right = respond(organism, asked)
    with apply_mote(organism.model, one):
        broken = respond(organism, asked)
    size = len(organism.tokenizer)
    made = {
        "random tokens": [organism.tokenizer.decode([draw.randrange(260, size) for _ in range(10)]) for _ in asked],
        "one word": [" ".join([text.split()[0]] * 12) for text in right],
        "shuffled": [" ".join(draw.sample(text.split(), len(text.split()))) for text in right],
    }
    usual = {"both": measures(organism, both, others, references[1], references)}
    usual["one"] = measures(organism, one, others, references[1], references)
    found = {"right": measures(organism, both, asked, right, references)}
    found["broken model"] = measures(organism, one, asked, broken, references)
    found |= {kind: measures(organism, both, asked, texts, references) for kind, texts in made.items()}
    figures = {}
    for measure in found["right"]:
        limits = {way: float(np.quantile(usual[way][measure], QUANTILE)) for way in usual}
        row = {"right": float((found["right"][measure] > limits["both"]).mean())}
        for kind in KINDS:
            limit = limits["one" if kind == "broken model" else "both"]
            row[kind] = float((found[kind][measure] > limit).mean())
        scores = [*found["broken model"][measure], *found["right"][measure]]
        row["auroc"] = auroc(scores, [True] * NUM_ASKED + [False] * NUM_ASKED)
        figures[measure] = row
    untouched = measures(organism, MoTEConfig(), *references, references)
    limits = limits_of(signs_of(untouched))
    row = {}
    for kind, values in found.items():
        row[kind] = float(np.mean(incoherent(signs_of(values), [""] * NUM_ASKED, limits)))
    row["auroc"] = 0.5 + (row["broken model"] - row["right"]) / 2
    figures["**both, against `limits_of`**"] = row
    return figures


def signs_of(values: dict[str, Array]) -> list[Signs]:
    pairs = zip(
        values["**perplexity under the model that wrote it**"], values["**repeated token pairs**"], strict=True
    )
    return [Signs(float(surprise), float(again), False) for surprise, again in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="traps of each organism (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    cases = [case(name, seed) for name in ("refusal", "language") for seed in range(options.seeds)]
    heads = ["measure", "right answers (false alarms)", *KINDS, "least AUROC"]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' --: |' * (len(heads) - 1)}"]
    for measure in cases[0]:
        cells = []
        for name in ("right", *KINDS):
            values = [figures[measure][name] for figures in cases]
            cells.append(f"{np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
        lines.append(
            f"| {measure} | {' | '.join(cells)} | {min(figures[measure]['auroc'] for figures in cases):.2f} |"
        )
    sys.stdout.write(f"Mean [least, most] over {len(cases)} organisms\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
