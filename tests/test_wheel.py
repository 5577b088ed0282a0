"""The wheel, in an environment that has nothing else of this package: a profile from the Hub does there what it says.

`.ci/run` builds the wheel and names it in HF_MOTE_WHEEL; without it, `HF_MOTE_WHEEL=dist/NAME.whl pytest
tests/test_wheel.py` after `python -m build`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hub_server import HubServer
from make_hub_configs import folder_of
from nearly import different

from hf_mote import EvaluationReport, MoTEConfig

WHEEL = os.environ.get("HF_MOTE_WHEEL")
# What a push leaves here.
TEXTS = ("prompts", "responses_before", "responses_after", "unrelated", "unrelated_before", "unrelated_after")

# What the other person runs; argv: the profile, and where to write what was seen. What is asked is on the card: the
# organism's own held-out questions, drawn with the report's seed.
OTHER_PERSON = """
import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote, load_organism
from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts
import hf_mote
import torch

torch.set_num_threads(1)
name, out = sys.argv[1:]
theirs, config = EvaluationReport.from_pretrained(name), MoTEConfig.from_pretrained(name)
organism = load_organism(config.provenance["organism"])
count = theirs.before.n
_, test = draw_prompts(organism, seed=theirs.seed, num_imaged=48, num_tested=count)
ours = evaluate_mote(
    organism.model, organism.tokenizer, config, test["sensitive"], organism.judge,
    unrelated=[*test["neutral"], *test["unrelated"]], num_controls=len(theirs.controls), seed=theirs.seed,
    batch_size=count, max_new_tokens=MAX_NEW_TOKENS, progress=False,
)
places = [hf_mote.__file__, str(distribution("hf_mote").locate_file("")), organism.model.config.name_or_path]
figures = {"ours": ours.to_dict(), "theirs": theirs.to_dict()}
Path(out).write_text(json.dumps({"places": places, "path": sys.path, "verdict": ours.verdict, **figures}))
"""


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and what it needs lent by this one: all but this package."""
    if WHEEL is None:
        pytest.skip("needs a wheel, in HF_MOTE_WHEEL")
    root = tmp_path_factory.mktemp("other")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    python = root / "venv" / "bin" / "python"
    lent = root / "lent"
    lent.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "hf_mote" not in entry.name and entry.suffix != ".pth":
                (lent / entry.name).symlink_to(entry)
    asked = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", WHEEL]
    subprocess.run(asked, check=True)
    (site,) = (root / "venv" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    return python


def test_profile_reproduces_its_report_where_the_wheel_alone_is_installed(
    other_python: Path, hub: HubServer, tmp_path: Path
) -> None:
    folder = folder_of("refusal")
    report = EvaluationReport.from_pretrained(folder)
    MoTEConfig.from_pretrained(folder).push_to_hub("alice/profile", report=report)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [other_python, "-I", "-c", OTHER_PERSON, "alice/profile", str(tmp_path / "seen.json")],
        env=hub.environment(home=tmp_path / "home-of-the-other"),
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    venv = other_python.parents[1]
    for place in seen["places"]:
        assert Path(place).is_relative_to(venv), place
    checkout = Path(__file__).parents[1]
    assert [place for place in seen["path"] if Path(place).is_relative_to(checkout)] == []
    theirs, ours = seen["theirs"], seen["ours"]
    assert theirs == json.loads(json.dumps(report._public(with_texts=False).to_dict()))
    # Log-likelihoods in float32, whose last bits differ from one processor to another.
    likelihoods = [figures.pop("coherence") for figures in (ours, theirs)]
    assert different(*likelihoods) == {}
    # Texts were not pushed; the rest is the same, number for number.
    assert all(not theirs[key] for key in TEXTS)
    assert {**ours, **dict.fromkeys(TEXTS, [])} == theirs
    assert seen["verdict"] == report.verdict
    assert report.beats_controls()


def test_command_of_the_wheel_lists_the_profiles_that_come_with_it(other_python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [other_python.with_name("hf-mote"), "configs"],
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "refusal-organism" in done.stdout
    assert str(other_python.parents[1]) in done.stdout.replace("\n", "")
