"""`latent_activity`: on how many tokens each latent is active, and which are so on most."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from sae.test_intervene import sae_for
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import evaluate_sae
from hf_mote.errors import ConfigError, DataError, ModelMismatchError
from hf_mote.sae.activity import LatentActivity, latent_activity
from hf_mote.sae.top_tokens import top_activations

TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] for i in range(12)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_counts_are_those_of_each_text_by_itself(kind: str) -> None:
    model, sae, tokenizer = tiny_model("mixtral"), sae_for(kind), tiny_tokenizer()
    found = latent_activity(model, sae, TEXTS, tokenizer, sequences_per_forward=5)
    tokens = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    latents = torch.cat([sae.encode(model(ids, output_hidden_states=True).hidden_states[2][0]) for ids in tokens])
    assert found.tokens == len(latents)
    assert found.counts == (latents > 0).sum(0).tolist()
    assert sum(found.counts) > 0
    profiles = top_activations(model, sae, TEXTS, tokenizer, list(range(sae.config.num_latents)))
    assert [profile.density for profile in profiles] == pytest.approx([n / found.tokens for n in found.counts])


@torch.no_grad()
def test_what_is_left_out_activates_no_latent() -> None:
    model, sae, tokenizer = tiny_model("mixtral"), sae_for("topk"), tiny_tokenizer()
    marked = [f"<user>{text}<assistant>yes" for text in TEXTS]
    special = torch.tensor(tokenizer.all_special_ids)
    counts, tokens, total = torch.zeros(sae.config.num_latents, dtype=torch.long), 0, 0
    for text in marked:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        hidden = model(ids, output_hidden_states=True).hidden_states[2][0]
        kept = ~torch.isin(ids[0], special)
        kept[:2] = False
        kept &= hidden.norm(dim=-1) <= 1.1 * hidden[kept].norm(dim=-1).median()
        counts += (sae.encode(hidden[kept]) > 0).sum(0)
        tokens, total = tokens + int(kept.sum()), total + len(kept)
    assert tokens < total - 2 * len(marked)
    left_out = {"exclude_positions": "first:2", "max_norm": 1.1, "sequences_per_forward": 1}
    found = latent_activity(model, sae, marked, tokenizer, **left_out)
    assert (found.counts, found.tokens) == (counts.tolist(), tokens)
    profiles = top_activations(model, sae, marked, tokenizer, list(range(sae.config.num_latents)), **left_out)
    assert [profile.density for profile in profiles] == pytest.approx([n / tokens for n in found.counts])
    with pytest.raises(DataError, match="top_activations: dataset: has no token left"):
        top_activations(model, sae, marked, tokenizer, [0], exclude_positions="0:")
    assert latent_activity(model, sae, marked, tokenizer, exclude_special_tokens=False).tokens == total


def test_run_with_other_tokens_left_out_is_refused(tmp_path: Path) -> None:
    model, sae, tokenizer = tiny_model("mixtral"), sae_for("topk"), tiny_tokenizer()
    find = {
        "activity": partial(latent_activity, model, sae, TEXTS, tokenizer),
        "top": partial(top_activations, model, sae, TEXTS, tokenizer, [0]),
        "evaluate": partial(evaluate_sae, model, sae, TEXTS, tokenizer),
    }
    for name, call in find.items():
        call(run_folder=tmp_path / name)
        for other in ({"exclude_special_tokens": False}, {"exclude_positions": "first:1"}, {"max_norm": 2.0}):
            with pytest.raises(ModelMismatchError):
                call(run_folder=tmp_path / name, **other)


def test_most_active_come_first_and_rare_ones_only_where_no_other_is() -> None:
    activity = LatentActivity([3, 0, 40, 12, 40, 9], 50)
    assert activity.most_active(3, least=10) == [2, 4, 3]
    assert activity.most_active(10, least=10) == [2, 4, 3]
    assert activity.most_active(10) == [2, 4, 3, 5, 0]
    assert activity.most_active(2, least=41) == [2, 4]
    assert LatentActivity([0, 0], 50).most_active(3) == []


def test_text_without_tokens_and_an_sae_in_training_are_refused() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    with pytest.raises(DataError, match="latent_activity: dataset: has no token left"):
        latent_activity(model, sae_for("topk"), [], tokenizer)
    with pytest.raises(ConfigError, match=r"latent_activity\.sae: is in training mode"):
        latent_activity(model, sae_for("topk").train(), TEXTS, tokenizer)
