"""Bad configs and activations: refused before anything is computed, with the field's name, and nothing changed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, SOME_SAES, TinySAE, activations
from transformers import AutoConfig, AutoModel

from hf_mote import FeatureChoiceSAEModel, SAEModel, TopKSAEModel
from hf_mote.errors import ConfigError, DataError, UnknownNameError

some_saes = pytest.mark.parametrize("sae", SOME_SAES, ids=str)
AUTOENCODER, TRANSCODER = TinySAE("topk", "autoencoder"), TinySAE("topk", "transcoder")


# Configs.


@some_saes
def test_config_unknown_key_is_refused_with_the_nearest_match(sae: TinySAE) -> None:
    for key, nearest in (("num_latent", "num_latents"), ("dead_after_token", "dead_after_tokens")):
        with pytest.raises(UnknownNameError, match=rf"Config: unknown name \(got '{key}'.*Did you mean '{nearest}'"):
            sae.config(**{key: 5})
    for key in ("vocab_size", "max_length", "_private", "is_transcoder", "check"):
        with pytest.raises(UnknownNameError, match=f"'{key}'"):
            sae.config(**{key: 5})


def test_config_unknown_key_in_a_file_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    AUTOENCODER.config().save_pretrained(tmp_path)
    edited = {**json.loads((tmp_path / "config.json").read_text()), "gamma": 1, "hf_mote_version": "9.9"}
    (tmp_path / "config.json").write_text(json.dumps(edited))
    with pytest.raises(UnknownNameError, match=r"'gamma'.*written by hf_mote 9\.9"):
        AutoConfig.from_pretrained(tmp_path)


WRONG_FIELDS: list[tuple[str, Any]] = [
    *(
        (name, value)
        for name in ("hidden_size", "num_latents")
        for value in (0, -1, 2.0, "8", None, True, math.nan, [8])
    ),
    *(("output_size", value) for value in (0, -3, 2.5, "8", False)),
    *((name, value) for name in ("hookpoint", "base_model", "base_model_revision") for value in (3, ["a"], True)),
    *(("skip_connection", value) for value in (1, None, "yes")),
    *(("normalize_decoder", value) for value in (1, None, "yes")),
    *(("reconstruction_loss", value) for value in ("l2", None, 1, ["fvu"])),
    *(("dead_after_tokens", value) for value in (0, -1, 1e7, True, "10")),
    *(("origin", value) for value in ("x", [1], {1: 2}, {"a": math.nan}, {"a": (1, 2)}, {"a": [torch.ones(1)]})),
    *(("dtype", value) for value in ("float33", "nn", "Tensor")),
]


@pytest.mark.parametrize(("name", "value"), WRONG_FIELDS, ids=str)
def test_config_field_of_a_wrong_type_or_value_is_refused_by_name(name: str, value: Any) -> None:
    for sae in (AUTOENCODER, TinySAE("jumprelu", "autoencoder"), TinySAE("feature_choice", "autoencoder")):
        with pytest.raises(ConfigError, match=rf"Config\.{name}: "):
            sae.config(**{name: value})


@pytest.mark.parametrize(
    ("sae", "name", "values"),
    [
        ("topk", "k", (0, -1, 41, 4.0, "4", True, None)),
        ("topk", "aux_k", (0, -1, 41, 4.0, "4", True)),
        ("topk", "aux_coefficient", (-0.1, math.nan, math.inf, "1", True)),
        ("topk", "aux_loss", ("aux", 1, False, "aux_zipf")),
        ("topk", "scale_latents_by_decoder_norm", (1, None, "no")),
        ("batch_topk", "threshold_decay", (-0.1, 1, 1.0, 2.0, math.nan, "0.5", True)),
        ("relu", "l1_coefficient", (-1.0, math.nan, math.inf, "1", None, True)),
        ("gated", "l1_coefficient", (-1.0, math.nan)),
        ("gated", "aux_coefficient", (-1.0, math.inf)),
        ("jumprelu", "bandwidth", (0, -1.0, math.nan)),
        ("jumprelu", "initial_threshold", (-1.0, math.nan)),
        ("jumprelu", "l0_coefficient", (-1.0, "1")),
        ("jumprelu", "l0_target", (0, -1.0, math.inf, True)),
        ("matryoshka", "group_sizes", ([], [0, 40], [-1, 41], [10, 10], [41], [20.0, 20], "40", 40, [True, 39])),
        ("feature_choice", "min_budget", (-1, 1.0, True, None)),
        ("feature_choice", "budget", ("even", None, 1)),
        ("feature_choice", "zipf_exponent", (-0.1, math.nan, math.inf, "1")),
        ("mutual_choice", "zipf_offset", (-0.1, math.nan)),
        ("mutual_choice", "aux_zipf_share", (-0.1, 1.1, math.nan)),
        ("mutual_choice", "density_window", (0, 1.5)),
    ],
)
def test_config_field_of_an_architecture_is_refused_by_name(sae: str, name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"Config\.{name}: "):
            TinySAE(sae, "autoencoder").config(**{name: value})


def test_config_combinations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"skip_connection: needs a transcoder.*Give output_size"):
        AUTOENCODER.config(skip_connection=True)
    with pytest.raises(ConfigError, match=r"subtract_decoder_bias: .*got output_size 9, expected hidden_size 12"):
        TRANSCODER.config(subtract_decoder_bias=True)
    TinySAE("topk", "autoencoder").config(skip_connection=True, output_size=HIDDEN)  # the remedy
    TRANSCODER.config(subtract_decoder_bias=False)


@some_saes
def test_config_changed_to_nonsense_is_neither_used_nor_written(sae: TinySAE, tmp_path: Path) -> None:
    model = sae.model()
    model.config.num_latents = "many"
    with pytest.raises(ConfigError, match="num_latents"):
        type(model)(model.config)
    with pytest.raises(ConfigError, match="num_latents"):
        model.config.save_pretrained(tmp_path / "config")
    with pytest.raises(ConfigError, match="num_latents"):
        model.save_pretrained(tmp_path / "model")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_config_fields_given_while_loading_are_checked(tmp_path: Path) -> None:
    AUTOENCODER.model().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, k=3).k == 3
    for load in (AutoConfig, AutoModel, SAEModel, TopKSAEModel):
        with pytest.raises(ConfigError, match=r"\.k: more latents than there are \(got 41"):
            load.from_pretrained(tmp_path, k=41)
    for load in (AutoConfig, AutoModel, SAEModel, TopKSAEModel):
        for name in ("check", "to_dict", "from_pretrained"):
            with pytest.raises(UnknownNameError, match=rf"TopKSAEConfig: unknown name \(got '{name}'"):
                load.from_pretrained(tmp_path, **{name: 3})
    for load in (AutoModel, SAEModel, TopKSAEModel):
        with pytest.raises(UnknownNameError, match=r"TopKSAEModel: unknown name \(got 'num_latent'.*'num_latents'"):
            load.from_pretrained(tmp_path, num_latent=8)
        with pytest.raises(ConfigError, match=r"TopKSAEModel: a config is given.*got k\)\. Set them in the config"):
            load.from_pretrained(tmp_path, config=AUTOENCODER.config(), k=2)


# Activations.


@pytest.mark.parametrize("budget", ["zipf", "uniform"])
def test_forward_budget_that_cannot_be_met_is_refused_and_nothing_changes(budget: str) -> None:
    sae = TinySAE("feature_choice", "autoencoder")
    model = FeatureChoiceSAEModel(sae.config(budget=budget)).train()
    model.W_dec.data.mul_(3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="budgets: cannot be met"):
        model(**sae.batch(2))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    model(**sae.batch(40))
    assert not torch.equal(model.W_dec, before["W_dec"])


@pytest.mark.parametrize("training", [False, True])
@some_saes
def test_forward_malformed_activations_are_refused_and_nothing_changes(sae: TinySAE, training: bool) -> None:
    model = sae.model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = sae.batch(20)
    x = batch["activations"]
    with_nan, with_inf = x.clone(), x.clone()
    with_nan[7, 3], with_inf[0, 0] = math.nan, -math.inf
    mask = torch.ones(20)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"activations": x[:, :-1]}, r"activations: wrong width \(got \(20, 11\), expected \(\.\.\., 12\)\)"),
        ({"activations": torch.tensor(1.0)}, r"activations: wrong width \(got \(\)"),
        ({"activations": x.long()}, r"activations: must be a float tensor \(got torch\.int64"),
        ({"activations": x > 0}, r"activations: must be a float tensor \(got torch\.bool"),
        ({"activations": x.to(torch.complex64)}, r"activations: must be a float tensor \(got torch\.complex64"),
        ({"activations": x.tolist()}, r"activations: must be a float tensor \(got list"),
        ({"activations": None}, r"activations: must be a float tensor \(got NoneType"),
        ({"activations": with_nan}, r"activations: token 7 holds NaN or an infinite number.*attention_mask"),
        ({"activations": with_inf}, "activations: token 0 holds NaN or an infinite number"),
        ({"activations": (x * 1e30).double() * 1e30}, "activations: token 0 holds NaN or an infinite"),
        ({"attention_mask": mask[:-1]}, r"attention_mask: wrong shape \(got \(19,\), expected \(20,\)\)"),
        ({"attention_mask": mask[:, None]}, r"attention_mask: wrong shape \(got \(20, 1\)"),
        ({"attention_mask": mask.tolist()}, r"attention_mask: must be a tensor \(got list"),
    ]
    if "targets" in batch:
        y = batch["targets"]
        wrong += [
            ({"targets": y[:, :-1]}, "targets: wrong width"),
            ({"targets": y[:-1]}, r"targets: not as many tokens as activations \(got \(19,\), expected \(20,\)\)"),
            ({"targets": y.long()}, "targets: must be a float tensor"),
            ({"targets": y * math.nan}, "targets: token 0 holds NaN"),
        ]
        if training:
            wrong.append(({"targets": None}, "targets: a transcoder cannot be trained without them"))
    else:
        wrong.append(({"targets": x}, r"targets: an autoencoder reconstructs its input.*Leave targets out"))
    for change, message in wrong:
        with pytest.raises(DataError, match=rf"SAEModel: (activations: )?{message}"):
            model(**{**batch, **change})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_encode_and_decode_malformed_arguments_are_refused() -> None:
    model = TinySAE("topk", "skip_transcoder").model()
    x = activations(5, HIDDEN)
    latents = model.encode(x)
    with pytest.raises(DataError, match="wrong width"):
        model.encode(x[:, :3])
    with pytest.raises(DataError, match=r"decode: latents: wrong width \(got \(5, 39\), expected \(\.\.\., 40\)"):
        model.decode(latents[:, :-1], x)
    with pytest.raises(DataError, match=r"decode: latents: token 2 holds NaN"):
        model.decode(latents.index_fill(0, torch.tensor([2]), math.nan), x)
    with pytest.raises(DataError, match="decode: activations: are needed for the skip connection"):
        model.decode(latents)
    with pytest.raises(
        DataError, match=r"decode: activations: not as many tokens as latents \(got \(4,\), expected \(5,\)"
    ):
        model.decode(latents, x[:4])


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "2", True, None])
def test_fold_scale_by_no_positive_number_is_refused(scale: Any) -> None:
    model = AUTOENCODER.model()
    before = model.b_dec.clone()
    with pytest.raises(DataError, match="fold_scale: scale: must be a positive number"):
        model.fold_scale(scale)
    assert torch.equal(model.b_dec, before)
