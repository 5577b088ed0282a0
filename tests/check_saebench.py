"""Ask the real SAEBench whether it takes what `SAEReport.to_saebench()` gives, and an exported SAE.

    python -m venv saebench && saebench/bin/pip install sae-bench
    python tests/check_saebench.py saebench/bin/python

Writes a report and an SAE of a tiny model, and reads both in that environment: the report as `CoreMetricCategories`,
the SAE by SAELens, whose SAEs SAEBench evaluates; its latents and reconstructions are compared with ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import TopKSAEConfig, TopKSAEModel, evaluate_sae, export_sae

TEXTS = [" ".join(["the", "quick", "brown", "fox", "jumps", "over"][i % 4 :]) + f" number {i}." for i in range(30)]
THERE = """
import json, sys
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from sae_bench.evals.core.eval_output import CoreMetricCategories
from sae_lens import SAE

folder = sys.argv[1]
report = json.load(open(folder + "/report.json"))
read = TypeAdapter(CoreMetricCategories).validate_python(report)
assert read.sparsity.l0 == report["sparsity"]["l0"]
for category, rows in report.items():
    assert {name: getattr(getattr(read, category), name) for name in rows} == rows, category
sae = SAE.load_from_disk(folder + "/sae")
known = load_file(folder + "/known.safetensors")
latents = sae.encode(known["x"])
off = [float((one - other).abs().max()) for one, other in ((latents, known["z"]), (sae.decode(latents), known["y"]))]
assert max(off) < 1e-5, off
assert float((sae.W_dec.norm(dim=1) - 1).abs().max()) < 1e-5
print(f"taken: report of {len(report)} categories, SAE within {max(off):.1e}")
"""


def main(python: str) -> None:
    torch.manual_seed(0)
    model = tiny_model("mixtral")
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=64, k=4, hookpoint="model.layers.1")).eval()
    report = evaluate_sae(model, sae, TEXTS, tiny_tokenizer(), context_length=16)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "report.json").write_text(json.dumps(report.to_saebench()))
        export_sae(sae, Path(folder, "sae"), "saelens")
        x = torch.randn(50, 32)
        with torch.no_grad():
            z = sae.encode(x)
            save_file({"x": x, "z": z, "y": sae.decode(z)}, Path(folder, "known.safetensors"))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([python, "-c", THERE, folder], check=True, env={**environment, "HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    main(sys.argv[1])
