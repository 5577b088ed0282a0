"""`SAETrainer` killed in the middle of a step by what nothing can catch, and resumed: bit for bit the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

# Three runs, one process each; they fork, so that what takes long to import is imported once.
_RUNS = """
import os, signal, sys
from pathlib import Path
tests, place = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, tests)
import torch
torch.set_num_threads(1)
from tiny_models import tiny_model, tiny_tokenizer
from transformers import TrainerCallback
from hf_mote import MutualChoiceSAEConfig, MutualChoiceSAEModel, SAETrainer, SAETrainingArguments, collect_activations

words = "the quick brown fox jumps over a lazy dog and runs away from it".split()
texts = [" ".join(words[i % 7 :] + words[: i % 5]) + f" number {i}." for i in range(40)]

class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder, kill_at):
    stream = collect_activations(
        tiny_model("mixtral"), tiny_tokenizer(), texts, "model.layers.1.output", batch_size=32, context_length=16,
        sequences_per_forward=4, window_tokens=256, normalize=True, cache=place / "cache",
    )
    torch.manual_seed(0)
    sae = MutualChoiceSAEModel(
        MutualChoiceSAEConfig(hidden_size=32, num_latents=64, k=4, dead_after_tokens=300, density_window=200)
    )
    arguments = SAETrainingArguments(
        str(folder), max_steps=14, save_steps=3, save_strategy="steps", logging_steps=1, use_cpu=True, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, gradient_accumulation_steps=2, k_start=8, k_steps=10,
    )
    trainer = SAETrainer(sae, arguments, train_dataset=stream, callbacks=[Kill(kill_at)])
    trainer.train(resume_from_checkpoint=True if list(folder.glob("checkpoint-*")) else None)
    sae.save_pretrained(folder / "end")

ends = []
for folder, kill_at in (("whole", -1), ("killed", 7), ("killed", 10), ("killed", -1)):
    child = os.fork()
    if not child:
        try:
            run(place / folder, kill_at)
        except BaseException:
            os._exit(1)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(ends[-1], (place / folder / "end").exists(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_that_was_killed_twice_ends_in_the_very_same_sae(tmp_path: Path) -> None:
    tests = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _RUNS, str(tests), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=True,
    )
    # Killed between two checkpoints, and after the optimizer moved the parameters.
    killed = f"{-signal.SIGKILL} False"
    assert [line for line in done.stdout.splitlines() if line[0] in "0-"] == ["0 True", killed, killed, "0 True"]
    whole, resumed = (load_file(tmp_path / name / "end" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert (tensor == resumed[name]).all(), name
