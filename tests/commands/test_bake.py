"""`hf-mote bake` as typed: a plain checkpoint of an organism, or a message that says why not."""

from __future__ import annotations

from pathlib import Path

import torch
from command_runs import ran, run, said
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mote import MoTEConfig, apply_mote, load_organism


def test_bake_command_writes_a_checkpoint_that_does_what_the_profile_does(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    planted = [list(pair) for pair in organism.planted]
    config = MoTEConfig.for_model(organism.model, suppress=planted, suppress_mode="zero")
    config.save_pretrained(tmp_path / "config")
    result = ran("bake", "organism:refusal", tmp_path / "config", tmp_path / "baked")
    assert "bit for bit" in said(result)
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=organism.model.dtype)
    ids = AutoTokenizer.from_pretrained(tmp_path / "baked")("What is the name of it?", return_tensors="pt").input_ids
    with torch.no_grad():
        mine = baked(input_ids=ids).logits
        with apply_mote(organism.model, config):
            assert torch.equal(mine, organism.model(input_ids=ids).logits)
    assert "must be a new or an empty folder" in said(
        run("bake", "organism:refusal", tmp_path / "config", tmp_path / "baked")
    )


def test_bake_command_refuses_drop_with_the_way_out(tmp_path: Path) -> None:
    MoTEConfig(suppress=[[1, 1]]).save_pretrained(tmp_path / "config")
    result = run("bake", "organism:refusal", tmp_path / "config", tmp_path / "baked")
    assert result.exit_code == 1
    assert "hf-mote ftri or attribute with --suppress 1 --mode zero" in said(result)
    assert "suppress_mode='zero'" in said(result)
    assert not (tmp_path / "baked").exists()
