"""Models by name: a folder, or what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mote.commands.model import Organisms, load_subject
from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError, UnsupportedError


def test_load_subject_folder_is_loaded_as_saved(tiny_folder: Path) -> None:
    subject = load_subject(str(tiny_folder), Organisms(), dtype="bfloat16")
    assert subject.model.dtype == torch.bfloat16
    assert not subject.model.training
    assert subject.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_load_subject_what_cannot_be_loaded_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="no model can be loaded from there"):
        load_subject("somebody/nothing-of-this-name", Organisms())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(HFMoTEError, match=str(tmp_path)):
        load_subject(str(tmp_path), Organisms())
    with pytest.raises(UnknownNameError, match="--dtype"):
        load_subject(str(tiny_folder), Organisms(), dtype="float8")
    with pytest.raises(ConfigError, match="--device"):
        load_subject(str(tiny_folder), Organisms(), device="toaster")


def test_load_subject_dense_model_is_refused_but_may_judge(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer()), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="no routed experts found"):
        load_subject(str(tmp_path), Organisms())
    assert load_subject(str(tmp_path), Organisms(), any_model=True).name == str(tmp_path)
