"""Keys of other libraries' configs of which a piece is lost: refused where they would be taken for missing ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from changes import BY_NAME

from hf_mote.errors import HFMoTEError


@pytest.mark.parametrize(
    ("name", "file", "place", "key", "left"),
    [
        ("llama_scope_r1", "config.json", (), "sparsity_include_decoder_norm", "spars_include_decoder_norm"),
        ("llama_scope_r1", "config.json", (), "sparsity_include_decoder_norm", "sparsity_include_decode"),
        ("opensae", "config.json", (), "normalize_shift_back", "normali_shift_back"),
        ("opensae", "config.json", (), "input_normalize_eps", "put_normalize_eps"),
        ("saelens_of_mistral", "cfg.json", (), "normalize_activations", "normalactivations"),
        ("dictionary_learning_topk_of_2024", "config.json", ("trainer",), "trainer_class", "trainclass"),
        # Of keys that decide which SAE it is, four letters are enough.
        *[("opensae", "config.json", (), "normalize_shift_back", left) for left in ("shift_back", "back", "noack")],
        *[("opensae", "config.json", (), "input_normalize", left) for left in ("input", "inlize", "alize")],
        *[("opensae", "config.json", (), "activation", left) for left in ("acti", "tion", "aion")],
        *[
            ("saelens_of_mistral", "cfg.json", (), "normalize_activations", left)
            for left in ("norm", "nations", "activations", "normalize_a", "ions")
        ],
        ("saelens_of_mistral", "cfg.json", (), "apply_b_dec_to_input", "apply_b_dec"),
    ],
)
def test_a_key_of_which_a_piece_is_lost_is_not_taken_for_a_missing_one(
    name: str, file: str, place: tuple[str, ...], key: str, left: str, tmp_path: Path
) -> None:
    one = BY_NAME[f"sae/{name}"]
    one.make(tmp_path)
    (path,) = tmp_path.rglob(file)
    document = json.loads(path.read_text())
    inner = document[place[0]] if place else document
    inner[left] = inner.setdefault(key, True)
    path.write_text(json.dumps(document))
    one.read(tmp_path)  # beside the key itself it is another one
    del inner[key]
    path.write_text(json.dumps(document))
    with pytest.raises(HFMoTEError, match=rf"{left}: unknown key.*Did you mean '{key}'"):
        one.read(tmp_path)


# Keys of training in configs of SAELens before version 6, and of what transformers writes beside OpenSAE's, whose
# letters are nearest to those of keys that decide.
_OF_TRAINING = (
    "act_store_device", "activation_fn_kwargs", "adam_beta1", "autocast", "autocast_lm", "cached_activations_path",
    "decoder_heuristic_init", "init_encoder_as_decoder_transpose", "l1_coefficient", "log_activations_store_to_wandb",
    "model_kwargs", "mse_loss_normalization", "n_batches_in_buffer", "noise_scale", "normalize_sae_decoder",
    "store_batch_size_prompts", "training_tokens", "use_cached_activations", "activation_fn",
)  # fmt: skip
_OF_TRANSFORMERS = (
    "architectures", "id2label", "is_decoder", "is_encoder_decoder", "k_experts", "moe_loss_coef", "multi_topk",
    "num_beams", "num_labels", "jumprelu_theta", "decoder_impl", "auxk_alpha", "l1_coef", "torch_dtype",
    "bos_token_id", "output_attentions", "output_hidden_states", "use_cache", "tie_word_embeddings",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "keys", "missing"),
    [
        ("saelens_of_mistral", "cfg.json", _OF_TRAINING, ("apply_b_dec_to_input", "normalize_activations")),
        (
            "opensae",
            "config.json",
            _OF_TRANSFORMERS,
            ("input_normalize", "input_normalize_eps", "normalize_shift_back"),
        ),
    ],
)
def test_keys_of_training_are_not_taken_for_what_is_left_of_others(
    name: str, file: str, keys: tuple[str, ...], missing: tuple[str, ...], tmp_path: Path
) -> None:
    one = BY_NAME[f"sae/{name}"]
    one.make(tmp_path)
    (path,) = tmp_path.rglob(file)
    document = json.loads(path.read_text())
    for key in missing:
        document.pop(key, None)
    path.write_text(json.dumps({**dict.fromkeys(keys), "activation_fn_kwargs": {}, **document}))
    one.read(tmp_path)
