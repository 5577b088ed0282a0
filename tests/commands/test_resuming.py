"""Commands that were stopped say what is kept; the same command goes on and writes what it would have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_runs import contents, ran, run, said
from interruptions import passes_of
from transformers import MixtralForCausalLM

from hf_mote import load_organism
from hf_mote.commands.run_files import Work

KEPT = "the same command goes on from it"
RESPONSES = ["--judge", "regex:[a-m]", "--max-new-tokens", "3", "--batch-size", "3"]
CONTROLS = ["--controls", "2"]
PAIR = ["--target", "yes", "--baseline", "no it is", "--batch-size", "3", "--traced", "1"]


@pytest.fixture(scope="module")
def places(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, prompts, others, and a ranking of its experts."""
    root = tmp_path_factory.mktemp("given")
    for name, texts in (("PROMPTS", "a bb c\nd e\nwhat?\nx\ny z\n"), ("OTHERS", "one\ntwo\nthree\n")):
        (root / f"{name}.txt").write_text(texts)
    pairs = ["prompt,corrupted", "abcd,abce", "x z,y z", "one two,ten six"]
    (root / "PAIRS.csv").write_text("\n".join(pairs))
    found = {
        "MODEL": tiny_folder,
        "PROMPTS": root / "PROMPTS.txt",
        "OTHERS": root / "OTHERS.txt",
        "PAIRS": root / "PAIRS.csv",
    }
    ran("attribute", tiny_folder, found["PROMPTS"], *PAIR, "--suppress", 2, "--output", root / "RANKING")
    return {**found, "RANKING": root / "RANKING"}


COMMANDS: dict[str, list[str]] = {
    "ftri": ["ftri", "MODEL", "PROMPTS", *RESPONSES, "--resamples", "0", "--traced", "0"],
    "evaluate": [
        *("evaluate", "MODEL", "RANKING", "PROMPTS", *RESPONSES, *CONTROLS, "--strengths", "0.5"),
        *("--unrelated", "OTHERS", "--texts", "OTHERS", "--against", "RANKING", "--opposite", "OTHERS"),
    ],
    "sweep": ["sweep", "MODEL", "RANKING", "PROMPTS", *RESPONSES, *CONTROLS, "--experts", "1,2"],
    "attribute": ["attribute", "MODEL", "PROMPTS", *PAIR, "--gain", "0.5"],
    "ablate": ["attribute", "MODEL", "PROMPTS", *PAIR, "--method", "ablation", "--shortlist", "4"],
    "patch": ["attribute", "MODEL", "PAIRS", *PAIR, "--method", "patching", "--resamples", "0"],
    "routes": ["routes", "MODEL", "PROMPTS", *PAIR[:-2], "--candidates", "2"],
    "optimize": ["attribute", "MODEL", "PROMPTS", *PAIR, "--method", "optimize", "--steps", "3"],
    "complete": ["attribute", "MODEL", "PROMPTS", *PAIR, "--method", "optimize", "--steps", "3", "--complete"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "complete")) for name in COMMANDS]
)
def test_command_goes_on_where_ctrl_c_stopped_it(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    words: list[Any] = [places.get(word, word) for word in COMMANDS[name]]
    if name in ("optimize", "complete"):  # there is something to remove: the model prefers one of the two
        words = _preferred(words, tmp_path)
    with passes_of(MixtralForCausalLM) as passes:
        ran(*words, "--output", tmp_path / "whole")
    out = tmp_path / "out"
    for stop in (2 * passes.made // 3, 2):
        with passes_of(MixtralForCausalLM, stop_at=stop):
            stopped = run(*words, "--output", out)
        assert stopped.exit_code == 130
        told = f"Stopped. What is done is kept in {out}.run; {KEPT}"
        assert told.replace(" ", "") in said(stopped).replace(" ", "")  # a long path is broken
        assert not out.exists()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", "."))] == ["out.run"]
    with passes_of(MixtralForCausalLM) as fewer:
        ran(*words, "--output", out)
    assert fewer.made < passes.made
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def _preferred(words: list[Any], folder: Path) -> list[Any]:
    """The responses exchanged if the untouched model prefers the second one."""
    first = run(*words, "--output", folder / "out")
    if first.exit_code != 0:
        assert "there is nothing to remove" in said(first)
        target, baseline = words.index("--target") + 1, words.index("--baseline") + 1
        words[target], words[baseline] = words[baseline], words[target]
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return words


def test_command_with_other_prompts_is_refused_and_begins_anew_once_the_folder_is_gone(
    places: dict[str, Path], tmp_path: Path
) -> None:
    words = ["sweep", places["MODEL"], places["RANKING"], places["PROMPTS"], *RESPONSES, *CONTROLS]
    with passes_of(MixtralForCausalLM, stop_at=12):
        assert run(*words, "--output", tmp_path / "out").exit_code == 130
    words[3] = places["OTHERS"]
    refused = run(*words, "--output", tmp_path / "out")
    assert refused.exit_code == 1
    assert "holds a run with other settings" in said(refused)
    assert "prompts_sha256" in said(refused)
    assert "delete it to begin anew" in said(refused)
    assert KEPT not in said(refused)
    assert (tmp_path / "out.run").is_dir()
    ran(*words, "--output", tmp_path / "other")


def test_run_folder_that_was_asked_for_stays(places: dict[str, Path], tmp_path: Path) -> None:
    words = ["attribute", places["MODEL"], places["PROMPTS"], *PAIR, "--run-folder", tmp_path / "kept"]
    ran(*words, "--output", tmp_path / "one")
    with passes_of(MixtralForCausalLM) as passes:
        ran(*words, "--output", tmp_path / "two")
    with passes_of(MixtralForCausalLM) as all_passes:
        ran(*words[:-2], "--output", tmp_path / "three")
    assert passes.made < all_passes.made
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "one", "three", "two"]
    (tmp_path / "file").write_text("x")
    refused = run(*words[:-1], tmp_path / "file", "--output", tmp_path / "four")
    assert "is a file" in said(refused)


def test_command_that_fails_before_anything_was_done_leaves_nothing(places: dict[str, Path], tmp_path: Path) -> None:
    words = [
        "evaluate",
        places["MODEL"],
        places["RANKING"],
        places["PROMPTS"],
        *RESPONSES,
        "--output",
        tmp_path / "out",
    ]
    with passes_of(MixtralForCausalLM, stop_at=1):
        stopped = run(*words)
    assert "Stopped. Nothing was written." in said(stopped)
    assert list(tmp_path.iterdir()) == []


def test_model_that_cannot_be_compared_works_without_a_folder_unless_it_was_asked_for(tmp_path: Path) -> None:
    model = load_organism("refusal").model
    with Work(tmp_path / "out").of(model) as part_of:
        assert part_of("config") == tmp_path / "out.run" / "config"
    handle = model.lm_head.register_forward_hook(lambda module, args, output: None)
    try:
        with Work(tmp_path / "out").of(model) as part_of:
            assert part_of("config") is None
        with Work(tmp_path / "out", tmp_path / "kept").of(model) as part_of:
            assert part_of("") == tmp_path / "kept"
    finally:
        handle.remove()


def test_evaluation_killed_and_typed_again_writes_what_it_would_have_written(
    places: dict[str, Path], tmp_path: Path
) -> None:
    words = [str(places.get(word, word)) for word in COMMANDS["evaluate"]]
    package = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hf_mote", *words, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    kept = tmp_path / "out.run" / "config"
    while len(list(kept.glob("responses-*"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    stamps = {path: path.stat().st_mtime_ns for path in kept.glob("responses-*")}
    assert len(stamps) >= 5
    # The report of the killed run is made of what was kept.
    ran(*words, "--output", tmp_path / "out", "--run-folder", tmp_path / "out.run")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    ran(*words, "--output", tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_find_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    kind = type(load_organism("refusal").model)
    words = ["find", "organism:refusal", "organism:refusal/train", "--limit", 24, "--controls", 4]
    words += ["--max-new-tokens", 12, "--batch-size", 64]
    with passes_of(kind) as passes:
        ran(*words, "--output", tmp_path / "whole")
    with passes_of(kind, stop_at=passes.made // 2):
        assert KEPT in said(run(*words, "--output", tmp_path / "out"))
    with passes_of(kind) as fewer:
        ran(*words, "--output", tmp_path / "out")
    assert fewer.made < 0.6 * passes.made
    one, other = ({path.relative_to(at): path for path in at.rglob("*") if path.is_file()} for at in _both(tmp_path))
    assert set(one) == set(other)
    for name in set(one) - {Path("report.json")}:
        assert one[name].read_bytes() == other[name].read_bytes(), name
    figures = [json.loads((at / "report.json").read_text()) for at in _both(tmp_path)]
    for each in figures:
        del each["provenance"]
    assert figures[0] == figures[1]


def _both(folder: Path) -> tuple[Path, Path]:
    return folder / "whole", folder / "out"
