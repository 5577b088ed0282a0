"""Models by name: a folder, or what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
from command_runs import run, said
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import tiny_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_mote.commands.model import Organisms, load_subject, served_subject
from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError


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


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_not_here_names_the_switch_that_keeps_the_hub_from_being_asked(
    offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("hf_mote.commands.model._source_of", missing)
    with pytest.raises(UnknownNameError, match="no model can be loaded") as refused:
        load_subject("somebody/nothing", Organisms())
    assert ("HF_HUB_OFFLINE is set" in str(refused.value)) == offline
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(UnknownNameError, match="no tokenizer and config") as refused:
        served_subject("somebody/nothing", Organisms(), revision=None, chat_template=None)
    assert ("HF_HUB_OFFLINE is set" in str(refused.value)) == offline


def test_load_subject_dense_model_is_refused_but_may_judge(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer()), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="no routed experts found"):
        load_subject(str(tmp_path), Organisms())
    assert load_subject(str(tmp_path), Organisms(), any_model=True).name == str(tmp_path)


def test_load_subject_with_weights_missing_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in weights if name.endswith("v_proj.weight")]
    assert gone
    save_file({name: value for name, value in weights.items() if name not in gone}, folder / "model.safetensors")
    with pytest.raises(FileFormatError, match=rf"model's weights are missing .*{re.escape(gone[0])}"):
        load_subject(str(folder), Organisms(), device="cpu")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_load_subject_of_an_adapter_looks_at_the_config_of_its_base(tmp_path: Path, tiny_folder: Path) -> None:
    model = load_subject(str(tiny_folder), Organisms()).model
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    adapter = json.loads(path.read_text())
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    path.write_text(json.dumps({**adapter, "base_model_name_or_path": str(base)}))
    if int(peft.__version__.split(".")[1]) >= 22:  # the oldest that transformers loads with
        assert load_subject(str(tmp_path), Organisms()).model.active_adapters() == ["default"]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "attn_implementation": "somebody/kernels"}))
    with pytest.raises(UnsupportedError, match="names kernels of a repository"):
        load_subject(str(tmp_path), Organisms())


def test_template_arguments_are_checked_before_weights_are_loaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", weights)
    template, prompts = tmp_path / "t.jinja", tmp_path / "p.txt"
    template.write_text("{% if not style is defined %}{{ raise_exception('style is missing') }}{% endif %}x")
    prompts.write_text("one\ntwo\n")
    words = [tiny_folder, prompts, "--chat-template", template, "--output", tmp_path / "out"]
    for command in (["ftri"], ["attribute", "--target", "a", "--baseline", "b"]):
        judge = ["--judge", "refusal"] if command == ["ftri"] else []
        for told, expected in (
            ([], "style is missing"),
            (["--template-arg", "colour=1"], "--template-arg colour: the chat template does not read it"),
        ):
            result = run(*command, *words, *judge, *told)
            assert result.exit_code == 1
            assert expected in said(result)
    assert not (tmp_path / "out").exists()
