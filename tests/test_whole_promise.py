"""The whole promise: what one person finds, another applies in a new process in one line, with the same outputs.

On tiny models of two families, bare and with a LoRA: experts are imaged from recorded generation and become a config,
an autoencoder is trained on the model's activations, both go to the Hub, and a process that has nothing but the model
and their names has to do the very same with them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hub_server import HubServer
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModel

from hf_mote import (
    FTRIResult,
    MoTEConfig,
    SAETrainer,
    SAETrainingArguments,
    SteeringConfig,
    TopKSAEConfig,
    TopKSAEModel,
    apply_mote,
    collect_activations,
    ftri,
    record_routing,
    steer,
)

FAMILIES = ("deepseek_v3", "mixtral")
WAYS = ("bare", "lora")
PROMPTS = [f"{word} a question about {place}?" for word in ("Ask", "Say") for place in ("Bremen", "Xanten", "Ulm")]
TOKENS = torch.randint(5, 85, (2, 9), generator=torch.Generator().manual_seed(5))
OPTIONS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
HOOKPOINT = "model.layers.1.output"

# What the other person types; argv: the folder of the models, the file to write, and a name of each model.
OTHER_PERSON = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM
from hf_mote import apply_mote, steer
from pathlib import Path

torch.set_num_threads(1)
models, out, tokens, options, names = torch.load(sys.argv[1], weights_only=False)
seen = {}
for name in names:
    model = AutoModelForCausalLM.from_pretrained(Path(models) / name, dtype="auto")
    if (Path(models) / f"{name}-adapter").is_dir():
        model = PeftModel.from_pretrained(model, Path(models) / f"{name}-adapter").eval()

    def outputs():
        with torch.no_grad():
            written = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
            return model(input_ids=tokens).logits, written

    found = {"native": outputs()}
    handle = apply_mote(model, f"alice/{name}-experts")
    found["patched"] = outputs()
    handle.remove()
    sae = AutoModel.from_pretrained(f"alice/{name}-sae")
    with steer(model, sae, {3: 4.0, 5: "ablate"}):
        found["steered"] = outputs()
    with steer(model, f"alice/{name}-latents"), apply_mote(model, f"alice/{name}-experts"):
        found["both"] = outputs()
    found["removed"] = outputs()
    seen[name] = found
torch.save(seen, out)
"""


def outputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        written = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **OPTIONS)  # type: ignore[operator]
        return model(input_ids=TOKENS).logits, written


def made(family: str, way: str, folder: Path) -> nn.Module:
    """The model, and beside it on the disk what the other person loads."""
    model = tiny_model(family)
    name = f"{family}-{way}"
    model.save_pretrained(folder / name)
    if way == "bare":
        return model
    attention = {"deepseek_v3": ["q_proj", "o_proj"], "mixtral": ["q_proj", "v_proj"]}
    torch.manual_seed(1)
    how = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=attention[family])
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        wrapped = peft.get_peft_model(model, how).eval()
    wrapped.save_pretrained(folder / f"{name}-adapter")
    return wrapped


def found_experts(model: nn.Module) -> MoTEConfig:
    """From recorded generation to a config, by `ftri` and by hand."""
    tokenizer = tiny_tokenizer()
    imaged = ftri(
        model,  # type: ignore[arg-type]
        tokenizer,
        PROMPTS,
        lambda prompt, response: prompt[:3],
        scope="all",
        max_new_tokens=4,
        progress=False,
    )
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    asked = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with record_routing(model) as record, torch.no_grad():
        model.generate(**asked, do_sample=False, max_new_tokens=4)  # type: ignore[operator]
    by_hand = FTRIResult.from_maps(record.maps("all"), imaged.classes, prompts=PROMPTS)
    ranking = imaged.rank("Ask", resamples=9)
    assert torch.equal(by_hand.rank("Ask", resamples=9).score, ranking.score)
    config = ranking.to_config(suppress=3)
    assert config.fingerprint == MoTEConfig.for_model(model).fingerprint
    return config


def trained_sae(model: nn.Module, folder: Path) -> TopKSAEModel:
    stream = collect_activations(
        model, tiny_tokenizer(), [{"text": prompt} for prompt in PROMPTS] * 4, HOOKPOINT, batch_size=64,
        context_length=32, window_tokens=256,
    )  # fmt: skip
    torch.manual_seed(2)
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=48, k=4, hookpoint=HOOKPOINT))
    before = sae.W_dec.detach().clone()
    arguments = SAETrainingArguments(
        str(folder), max_steps=6, learning_rate=1e-2, use_cpu=True, disable_tqdm=True, report_to="none",
        save_strategy="no",
    )  # fmt: skip
    SAETrainer(sae, arguments, train_dataset=stream).train()
    assert not torch.equal(sae.W_dec, before)
    return sae.eval()


def test_what_one_person_finds_another_applies_in_a_new_process(hub: HubServer, tmp_path: Path) -> None:
    expected = {}
    for name in (names := [f"{family}-{way}" for family in FAMILIES for way in WAYS]):
        model = made(*name.split("-"), tmp_path / "models")
        config, sae = found_experts(model), trained_sae(model, tmp_path / "training")
        config.push_to_hub(f"alice/{name}-experts")
        sae.push_to_hub(f"alice/{name}-sae")
        latents = {3: 4.0, 5: "ablate"}
        SteeringConfig(latents, hookpoint=HOOKPOINT, sae=f"alice/{name}-sae").push_to_hub(f"alice/{name}-latents")
        seen = {"native": outputs(model)}
        with apply_mote(model, config):
            seen["patched"] = outputs(model)
        with steer(model, sae, latents):
            seen["steered"] = outputs(model)
        with steer(model, sae, latents), apply_mote(model, config):
            seen["both"] = outputs(model)
        seen["removed"] = outputs(model)
        for one, other in (("native", "patched"), ("native", "steered"), ("patched", "both"), ("steered", "both")):
            assert not torch.equal(seen[one][0], seen[other][0]), (name, one, other)
        expected[name] = seen
        assert type(AutoModel.from_pretrained(f"alice/{name}-sae")) is TopKSAEModel

    told = (str(tmp_path / "models"), str(tmp_path / "seen.pt"), TOKENS, OPTIONS, names)
    torch.save(told, tmp_path / "told.pt")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PERSON, str(tmp_path / "told.pt")],
        env=hub.environment(home=tmp_path / "home-of-the-other"),
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "seen.pt", weights_only=True)
    for name, seen in expected.items():
        for what, pair in seen.items():
            assert all(map(torch.equal, theirs[name][what], pair)), (name, what)
        assert all(map(torch.equal, theirs[name]["native"], theirs[name]["removed"]))
