"""`evaluate_sae` against each number computed in the obvious way, and its limits: perfect, mean, nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae.test_intervene import num_hooks, sae_for
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F

from hf_mote import ReLUSAEConfig, ReLUSAEModel, SAEReport, TopKSAEModel, evaluate_sae
from hf_mote.errors import ConfigError, DataError, FileFormatError

TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] * (1 + i % 3) for i in range(14)]
SETTINGS: dict[str, Any] = {"packed": False, "context_length": 24}


def perfect() -> ReLUSAEModel:
    """Latents are the activations' positive and negative parts: nothing is lost."""
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=32, num_latents=64, hookpoint="model.layers.1.output"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_dec.copy_(sae.W_enc)
    return sae.eval()


@torch.no_grad()
def by_hand(sae: Any, texts: list[str]) -> dict[str, Tensor]:
    """Activations, reconstructions, losses and divergences, one text after the other, special tokens left out."""
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    layer, new = model.model.layers[1], {}
    found: dict[str, list[Tensor]] = {key: [] for key in ("x", "y", "z", "clean", "sae", "zero", "kl")}
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 24):
            part = torch.tensor([ids[start : start + 24]])
            clean = model(part, output_hidden_states=True)
            x = clean.hidden_states[2][0]
            rebuilt, latents = sae(x).reconstruction, sae.encode(x)
            logits = {}
            for name, value in (("sae", rebuilt[None]), ("zero", torch.zeros_like(x)[None])):
                new["value"] = value
                hook = layer.register_forward_hook(lambda *_: new["value"])
                logits[name] = model(part).logits[0]
                hook.remove()
            found["x"].append(x)
            found["y"].append(rebuilt)
            found["z"].append(latents)
            found["clean"].append(F.cross_entropy(clean.logits[0, :-1], part[0, 1:], reduction="none"))
            for name, value in logits.items():
                found[name].append(F.cross_entropy(value[:-1], part[0, 1:], reduction="none"))
            p, q = clean.logits[0, :-1].log_softmax(-1), logits["sae"][:-1].log_softmax(-1)
            found["kl"].append((p.exp() * (p - q)).sum(-1))
    return {key: torch.cat(values).double() for key, values in found.items()}


@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu"])
def test_report_holds_what_is_computed_by_hand(name: str) -> None:
    sae, model = sae_for(name), tiny_model("mixtral")
    report = evaluate_sae(model, sae, TEXTS, tiny_tokenizer(), sequences_per_forward=5, **SETTINGS)
    hand = by_hand(sae, TEXTS)
    x, y, z = hand["x"], hand["y"], hand["z"]
    error = (x - y).pow(2).sum()
    near = {"rel": 1e-4, "abs": 1e-7}
    assert report.tokens == len(x)
    assert report.predictions == len(hand["clean"])
    assert report.fvu == pytest.approx(float(error / (x - x.mean(0)).pow(2).sum()), **near)
    assert report.nmse == pytest.approx(float(error / x.pow(2).sum()), **near)
    assert report.mse == pytest.approx(float(error / len(x)), **near)
    assert report.cosine == pytest.approx(float(F.cosine_similarity(x, y).mean()), **near)
    assert report.l2_ratio == pytest.approx(float((y.norm(dim=1) / x.norm(dim=1)).mean()), **near)
    bias = y.pow(2).sum() / (x * y).sum()
    assert report.relative_reconstruction_bias == pytest.approx(float(bias), **near)
    assert report.l0 == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert report.l0_quantiles["0.5"] == pytest.approx(float((z > 0).sum(1).double().quantile(0.5)))
    assert report.l1 == pytest.approx(float(z.sum(1).mean()), **near)
    torch.testing.assert_close(torch.tensor(report.density).double(), (z > 0).double().mean(0))
    assert report.dead_fraction == pytest.approx(float(((z > 0).sum(0) == 0).double().mean()))
    for key in ("clean", "sae", "zero"):
        assert report.ce[key] == pytest.approx(float(hand[key].mean()), **near), key
    assert report.kl["sae"] == pytest.approx(float(hand["kl"].mean()), **near)
    clean, spliced, zero = (float(hand[key].mean()) for key in ("clean", "sae", "zero"))
    assert report.ce_recovered["zero"] == pytest.approx((zero - spliced) / (zero - clean), rel=1e-3)
    assert num_hooks(model) == 0


def test_numbers_do_not_depend_on_how_the_text_is_batched() -> None:
    sae, model = sae_for("topk"), tiny_model("mixtral")
    one, many = (
        evaluate_sae(model, sae, TEXTS, tiny_tokenizer(), sequences_per_forward=size, **SETTINGS).to_dict()
        for size in (1, 14)
    )
    for key in ("fvu", "mse", "cosine", "l0", "dead_fraction", "tokens", "predictions", "l0_quantiles"):
        assert one[key] == pytest.approx(many[key], rel=1e-3), key
    for key in ("clean", "sae", "zero", "mean"):
        assert one["ce"][key] == pytest.approx(many["ce"][key], rel=1e-4), key


def test_a_perfect_sae_recovers_everything_and_the_mean_nothing() -> None:
    model = tiny_model("mixtral")
    report = evaluate_sae(model, perfect(), TEXTS, tiny_tokenizer(), **SETTINGS)
    assert report.fvu < 1e-10
    assert report.explained_variance == pytest.approx(1)
    assert report.cosine == pytest.approx(1)
    assert report.relative_reconstruction_bias == pytest.approx(1)
    assert report.encoder_decoder_cosine == pytest.approx(1)
    for name in ("zero", "mean", "resample"):
        assert report.ce_recovered[name] == pytest.approx(1, abs=1e-4)
        assert report.kl_recovered[name] == pytest.approx(1, abs=1e-4)
    nothing = sae_for("relu")
    with torch.no_grad():
        nothing.b_enc.fill_(-1e6)
        nothing.b_dec.copy_(by_hand(perfect(), TEXTS)["x"].mean(0))
    report = evaluate_sae(model, nothing, TEXTS, tiny_tokenizer(), **SETTINGS)
    assert report.fvu == pytest.approx(1, rel=1e-5)
    assert report.ce_recovered["mean"] == pytest.approx(0, abs=1e-3)
    assert report.dead_fraction == 1
    assert report.l0 == 0
    assert report.zipf is None


def test_special_tokens_and_padding_are_left_out() -> None:
    model, tokenizer, sae = tiny_model("mixtral"), tiny_tokenizer(), sae_for("topk")
    rows = [{"input_ids": [*tokenizer("hello there")["input_ids"], 1, *tokenizer("you")["input_ids"]]}, "a short one"]
    measured = evaluate_sae(model, sae, rows, tokenizer, **SETTINGS)
    assert measured.tokens == len("hello there") + len("you") + len("a short one")
    assert measured.predictions == measured.tokens - 2  # nothing follows the last tokens
    everything = evaluate_sae(model, sae, rows, tokenizer, exclude_special_tokens=False, **SETTINGS)
    assert everything.tokens == measured.tokens + 1
    with pytest.raises(DataError, match="there is no tokenizer"):
        evaluate_sae(model, sae, rows, **SETTINGS)
    assert evaluate_sae(model, sae, rows[:1], **SETTINGS).tokens == everything.tokens - len("a short one")


def test_transcoders_are_measured_where_they_write() -> None:
    report = evaluate_sae(
        tiny_model("mixtral"), sae_for("relu", "transcoder"), TEXTS[:4], tiny_tokenizer(), **SETTINGS
    )
    assert report.hookpoint == "model.layers.1.mlp.input"
    assert report.output_hookpoint == "model.layers.1.mlp"
    assert report.fvu > 0
    assert report.encoder_decoder_cosine is None


def test_what_is_left_out_is_measured_nowhere() -> None:
    model, tokenizer, sae = tiny_model("mixtral"), tiny_tokenizer(), sae_for("topk")
    settings = {**SETTINGS, "packed": False, "sequences_per_forward": 4}
    texts = [{"input_ids": tokenizer(text)["input_ids"][: SETTINGS["context_length"]]} for text in TEXTS[:4]]
    whole = evaluate_sae(model, sae, texts, tokenizer, **settings)
    found = evaluate_sae(model, sae, texts, tokenizer, exclude_positions="first:2", max_norm=1.1, **settings)
    seen: list[torch.Tensor] = []
    for text in texts:
        ids = torch.tensor([text["input_ids"]])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[2][0]
        special = torch.isin(ids[0], torch.tensor(tokenizer.all_special_ids))
        special[:2] = True
        seen.append(hidden[~special])
    rows = torch.cat(seen)
    lengths = rows.norm(dim=1)
    rows = rows[lengths <= 1.1 * lengths.median()].double()
    assert found.tokens == len(rows) < whole.tokens
    with torch.no_grad():
        rebuilt = sae(rows.float()).reconstruction.double()
    error, centred = (rows - rebuilt).pow(2).sum(1), (rows - rows.mean(0)).pow(2).sum(1)
    assert found.fvu == pytest.approx(float(error.sum() / centred.sum()), rel=1e-4)
    assert found.explained_variance_legacy == pytest.approx(float((1 - error / centred).mean()), rel=1e-3)
    with pytest.raises(ConfigError, match="evaluate_sae.max_norm: must be a number"):
        evaluate_sae(model, sae, TEXTS[:4], tokenizer, max_norm=0.0)


def test_the_names_of_saebench_are_all_that_its_core_evaluation_has() -> None:
    """As the real `CoreMetricCategories` of sae-bench 0.6.0 wants them; tests/check_saebench.py asks it."""
    report = evaluate_sae(tiny_model("mixtral"), sae_for("topk"), TEXTS, tiny_tokenizer(), **SETTINGS)
    names = {category: set(rows) for category, rows in report.to_saebench().items()}
    assert names == {
        "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
        "model_performance_preservation": {
            "ce_loss_score",
            "ce_loss_with_ablation",
            "ce_loss_with_sae",
            "ce_loss_without_sae",
        },
        "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
        "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
        "sparsity": {"l0", "l1"},
        "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
        "misc_metrics": {
            "freq_over_1_percent",
            "freq_over_10_percent",
            "normalized_freq_over_1_percent",
            "normalized_freq_over_10_percent",
            "average_max_encoder_cosine_sim",
            "average_max_decoder_cosine_sim",
            "frac_alive",
        },
    }


def test_report_is_saved_read_and_named_as_saebench_names_it(tmp_path: Path) -> None:
    report = evaluate_sae(tiny_model("mixtral"), sae_for("topk"), TEXTS, tiny_tokenizer(), **SETTINGS)
    report.save_pretrained(tmp_path)
    assert SAEReport.from_pretrained(tmp_path) == report
    assert "cross entropy recovered (zero ablation)" in (tmp_path / "README.md").read_text()
    bench = report.to_saebench()
    assert bench["sparsity"]["l0"] == report.l0
    assert bench["model_performance_preservation"]["ce_loss_score"] == report.ce_recovered["zero"]
    assert bench["misc_metrics"]["frac_alive"] == 1 - report.dead_fraction
    path = tmp_path / "sae_report.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "more": 1}))
    with pytest.raises(FileFormatError, match="more"):
        SAEReport.from_pretrained(tmp_path)
    for version in (True, 1.0, "1", 2, None):
        path.write_text(json.dumps({**good, "schema_version": version}))
        with pytest.raises(FileFormatError, match="this version cannot be read"):
            SAEReport.from_pretrained(tmp_path)


def test_report_plots_what_it_holds(tmp_path: Path) -> None:
    report = evaluate_sae(tiny_model("mixtral"), sae_for("topk"), TEXTS, tiny_tokenizer(), **SETTINGS)
    figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000
    spectrum, losses, adaptive = figure.axes
    drawn = spectrum.lines[0].get_ydata()
    assert list(drawn) == sorted((value for value in report.density if value > 0), reverse=True)
    assert [bar.get_width() for bar in losses.patches] == list(report.ce.values())
    assert list(adaptive.lines[0].get_ydata()) == report.adaptive["l0_by_tenth_of_loss"]


def test_what_cannot_be_measured_is_refused() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    with pytest.raises(DataError, match="no token left to measure"):
        evaluate_sae(model, sae_for("topk"), [], tokenizer)
    with pytest.raises(ConfigError, match="is in training mode"):
        evaluate_sae(model, sae_for("topk").train(), TEXTS, tokenizer)
    with pytest.raises(ConfigError, match="does not say where it belongs"):
        evaluate_sae(model, sae_for("topk", hookpoint=None), TEXTS, tokenizer)


def test_encode_sparse_holds_what_encode_does() -> None:
    sae = sae_for("topk")
    assert isinstance(sae, TopKSAEModel)
    x = torch.randn(3, 5, 32)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    dense, sparse = sae.encode(x, mask), sae.encode_sparse(x, mask)
    assert torch.equal(sparse.dense().reshape(dense.shape), dense)
    assert len(sparse.values) == int((dense > 0).sum()) == 3 * 3 * 4
    assert torch.equal(dense.reshape(15, -1)[sparse.pattern.rows, sparse.pattern.columns], sparse.values)
