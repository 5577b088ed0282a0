"""The organisms' tokenizer: byte-fallback BPE, nearly every place and year one token, with a chat template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "train_tokenizer"]

_PAD, _END, _USER, _ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
_SPACE = "\u2581"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 4000) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer trained on `texts`, padding on the left, with bytes for unknown text.

    Args:
        texts (`Iterable[str]`): Questions and answers, repeated as often as they should weigh.
        vocab_size (`int`): Upper bound on the vocabulary, the 256 bytes and 4 special tokens included.
    """
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token=None, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [_PAD, _END, _USER, _ASSISTANT]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_USER, _ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
