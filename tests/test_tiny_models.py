"""The tiny models are what the tests take them for: reproducible, generating, with selections well apart."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY_MODELS, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_tiny_model_is_reproducible_and_leaves_the_seed_alone(name: str, dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    first, second = tiny_model(name, dtype), tiny_model(name, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == dtype
    ids = torch.arange(5, 45).reshape(2, 20)
    assert torch.equal(first(ids).logits, second(ids).logits)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_tiny_model_uses_every_expert_and_seldom_ties(name: str) -> None:
    model, seen = tiny_model(name), []
    routers = [module for path, module in model.named_modules() if path.endswith("mlp.gate")]
    for router in routers:
        router.register_forward_hook(lambda module, args, output: seen.append((module, *output)))
    with torch.no_grad():
        model(torch.arange(5, 101).reshape(4, 24))
    assert len(seen) == (3 if name == "mixtral" else 2)
    for router, logits, _, indices in seen:
        bias = getattr(router, "e_score_correction_bias", None)
        scores = logits.softmax(-1) if bias is None else logits.sigmoid() + bias
        ranked = scores.sort(dim=-1, descending=True).values
        gap = ranked[:, router.top_k - 1] - ranked[:, router.top_k]
        assert (gap > 1e-3).float().mean() > 0.9
        assert indices.flatten().bincount(minlength=8).min() > 0
        assert bias is None or bias.abs().min() > 0


@pytest.mark.parametrize("text", ["Hello, world!\n1999 = x", "", "<user>hi<assistant>yes<eos>"])
def test_tiny_tokenizer_round_trip(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_tiny_tokenizer_chat_template_and_generate() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model("mixtral")
    chats = [[{"role": "user", "content": text}] for text in ("What happened in 1999?", "Hi")]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    assert batch["attention_mask"][1, 0] == 0
    output = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert output.shape[1] == batch["input_ids"].shape[1] + 4
    assert tokenizer.apply_chat_template(chats[1], tokenize=False, add_generation_prompt=True) == "<user>Hi<assistant>"
