"""Rows that hold several sequences, however it shows: what tells rows or texts apart refuses them, and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import cache_of, taking
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from transformers import DynamicCache, PreTrainedModel, StaticCache

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import UnsupportedError
from hf_mote.passes.arguments import read_arguments, why_packed

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
SUPPRESS = [[layer, expert] for layer in range(1, 3) for expert in range(3)]


def mask_of(*lengths: int, window: int | None = None, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """A causal mask in blocks, `(1, 1, tokens, tokens)`."""
    part = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(part))
    allowed = (part[:, None] == part) & (place[:, None] >= place)
    if window is not None:
        allowed &= place[:, None] - place < window
    allowed = allowed[None, None]
    if kind == torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=kind).masked_fill(~allowed, torch.finfo(kind).min)


SHOWN: dict[str, dict[str, Any]] = {
    "4-D mask": {"attention_mask": mask_of(4, 2)},
    "4-D mask of yes and no": {"attention_mask": mask_of(1, 5, kind=torch.bool)},
    "4-D mask in half precision": {"attention_mask": mask_of(3, 3, kind=torch.bfloat16)},
    "2-D mask that numbers": {"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2]])},
    "positions from 0": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
    "positions from 1": {"position_ids": torch.tensor([[1, 2, 3, 1, 2, 3]])},
    "positions of one row of axes": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(3, 1, 6)},
    "lengths": {"cu_seq_lens_q": torch.tensor([0, 3, 6]), "cu_seq_lens_k": torch.tensor([0, 3, 6])},
    "lengths by another name": {"cu_seqlens": torch.tensor([0, 3, 6])},
    "numbers": {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32)},
}
NOT: dict[str, dict[str, Any]] = {
    "4-D mask": {"attention_mask": mask_of(6)},
    "4-D mask with a window": {"attention_mask": mask_of(6, window=2)},
    "masks by kind of layer": {
        "attention_mask": {"full_attention": mask_of(6), "chunked_attention": mask_of(3, 3)},
    },
    "2-D mask": {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])},
    "positions": {"position_ids": torch.arange(6)[None]},
    "positions of an image": {
        "position_ids": torch.tensor([[[0, 1, 1, 1, 1, 2]], [[0, 1, 1, 2, 2, 3]], [[0, 1, 2, 1, 2, 3]]])
    },
    "lengths": {"cu_seq_lens_q": torch.tensor([0, 6])},
    "numbers": {"seq_idx": torch.zeros(1, 6, dtype=torch.int32)},
}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral")


@pytest.mark.parametrize("how", SHOWN)
def test_why_packed_sees_it(how: str) -> None:
    read = read_arguments((IDS,), SHOWN[how])
    assert read is not None
    assert why_packed(read, None, 0) is not None


@pytest.mark.parametrize("how", NOT)
def test_why_packed_of_plain_rows_is_none(how: str) -> None:
    read = read_arguments((IDS,), NOT[how])
    assert read is not None
    real = torch.tensor([[False, True, True, True, True, True]]) if how == "2-D mask" else None
    assert why_packed(read, real, 0) is None


@pytest.mark.parametrize("how", [how for how in SHOWN if "axes" not in how and "half" not in how])
@pytest.mark.parametrize("attached", ["record", "by row", "thinking"])
def test_packed_rows_are_refused_where_rows_or_texts_matter(model: PreTrainedModel, how: str, attached: str) -> None:
    with {
        "record": lambda: record_routing(model),
        "by row": lambda: apply_mote(model, [MoTEConfig(suppress=SUPPRESS), None]),
        "thinking": lambda: apply_mote(model, MoTEConfig(suppress=SUPPRESS, scope="thinking", thinking_tokens=[6, 9])),
    }[attached]():
        given = {
            name: value.expand(2, *value.shape[1:]) if value.shape[0] == 1 else value
            for name, value in SHOWN[how].items()
        }
        given = {
            name: torch.tensor([0, 3, 6, 9, 12]) if name.startswith("cu_") else value for name, value in given.items()
        }
        with pytest.raises(UnsupportedError, match="several|sequences|start anew|begin at 1"):
            model(IDS.expand(2, -1), use_cache=False, **given)


@pytest.mark.parametrize("how", ["4-D mask", "positions from 0"])
def test_packed_rows_under_scopes_all_and_prompt_are_what_they_are_alone(model: PreTrainedModel, how: str) -> None:
    first = 4 if how == "4-D mask" else 3
    both = {
        "attention_mask": mask_of(first, 6 - first),
        "position_ids": torch.cat([torch.arange(first), torch.arange(6 - first)])[None],
    }
    for scope in ("all", "prompt"):
        with apply_mote(model, MoTEConfig(suppress=SUPPRESS, scope=scope)):
            found = model(IDS, use_cache=False, **both).logits
            wanted = [model(part).logits for part in (IDS[:, :first], IDS[:, first:])]
        assert torch.allclose(found, torch.cat(wanted, dim=1), atol=1e-5)


def test_static_cache_with_a_2d_mask_as_wide_as_itself_is_counted_by_place(model: PreTrainedModel) -> None:
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    more = torch.tensor([[11], [12]])
    found = []
    for wide in (False, True):
        kind = StaticCache(config=model.config, max_cache_len=9) if wide else DynamicCache(config=model.config)
        held = taking(model, kind)
        with record_routing(model, eos_token_id=[]) as record:
            seen = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
            first = model(ids, attention_mask=seen if wide else mask, position_ids=positions, **held).logits
            second = model(
                more, attention_mask=seen if wide else seen[:, :5], position_ids=positions[:, -1:] + 1, **held
            ).logits
        found.append((first, second, [m.num_tokens for p in ("prompt", "generation") for m in record.maps(p)]))
    assert found[0][2] == found[1][2] == [2, 4, 1, 1]
    real = mask.bool()
    assert torch.allclose(found[0][0][real], found[1][0][real], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_static_cache_with_a_mask_of_another_width_is_refused(model: PreTrainedModel) -> None:
    cache = StaticCache(config=model.config, max_cache_len=9)
    with record_routing(model), pytest.raises(UnsupportedError, match="the attention mask covers 7 tokens"):
        model(IDS, attention_mask=torch.ones(1, 7, dtype=torch.long), **taking(model, cache))


@pytest.mark.parametrize("scope", ["thinking", "answer"])
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "glm4v_moe"])
def test_thinking_of_a_model_for_images_is_told_by_the_ids_it_was_given(family: str, scope: str) -> None:
    model = TINY_FAMILIES[family]()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 7, 8, 6, 10, 9, 12]])
    layer = model.config.get_text_config().num_hidden_layers - 1
    config = MoTEConfig(suppress=[[layer, e] for e in range(3)], scope=scope, thinking_tokens=[6, 9])
    labels = torch.tensor([[0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 2, 2]]) == (1 if scope == "thinking" else 2)
    native = model(ids).logits
    with apply_mote(model, MoTEConfig(suppress=config.suppress)):
        everywhere = model(ids).logits
    with apply_mote(model, config):
        found = model(ids).logits
        output = model(ids[:, :4], use_cache=True)
        rest = [model(ids[:, at : at + 1], **taking(model, cache_of(output))).logits for at in range(4, 7)]
        with pytest.raises(UnsupportedError, match="embeddings"):
            model(inputs_embeds=model.get_input_embeddings()(ids))
        embedded = model.get_input_embeddings()(ids)
        with pytest.raises(UnsupportedError, match="embeddings"):
            model.model.language_model(inputs_embeds=embedded)
    # The last layer alone is edited, so that tokens do not see each other's edits.
    assert torch.allclose(found, torch.where(labels[..., None], everywhere, native), atol=1e-5)
    assert torch.allclose(torch.cat(rest, dim=1), found[:, 4:], atol=1e-4)
