"""Imaging that is killed and started again, or shared out among processes, gives what one run gives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from hf_mote import FTRIResult, MoTEConfig, ftri
from hf_mote.errors import DataError, FileFormatError, ModelMismatchError
from hf_mote.files import read_tensors, write_tensors

PROMPTS = [f"{'word ' * (index % 5)}{index}?" for index in range(24)]

SCRIPT = """
import sys, time
import torch
from tiny_models import tiny_model, tiny_tokenizer
from hf_mote import ftri

torch.set_num_threads(1)
prompts, folder, target, delay = eval(sys.argv[1]), sys.argv[2] or None, sys.argv[3], float(sys.argv[4])
model = tiny_model("deepseek_v3")
plain = model.generate

def slow(*args, **kwargs):
    time.sleep(delay)
    return plain(*args, **kwargs)

model.generate = slow
result = ftri(
    model, tiny_tokenizer(), prompts, lambda response: str(len(response) % 2), batch_size=3, max_new_tokens=4,
    generate_kwargs={"do_sample": True}, run_folder=folder, progress=False,
)
import os
if os.environ.get("RANK", "0") == target[-1] or not target[-1].isdigit():
    result.save_pretrained(target)
"""


def run(**options):
    options = {"generate_kwargs": {"do_sample": True}, "batch_size": 3, "max_new_tokens": 4, **options}
    return ftri(
        tiny_model("deepseek_v3"),
        tiny_tokenizer(),
        PROMPTS,
        lambda response: str(len(response) % 2),
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


def assert_equal(one: FTRIResult, other: FTRIResult) -> None:
    for name in ("counts", "weights", "num_tokens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.responses == other.responses
    assert one.classes == other.classes
    assert one.prompts == other.prompts


def started(arguments, **environment):
    tests = str(Path(__file__).parents[2])
    package = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{package}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_ftri_killed_and_started_again_gives_the_same_maps(uninterrupted, tmp_path):
    folder, script = tmp_path / "run", tmp_path / "image.py"
    script.write_text(SCRIPT)
    process = started([str(script), repr(PROMPTS), str(folder), str(tmp_path / "never"), "0.4"])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("batch-*"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = sorted(folder.glob("batch-*"))
    assert 3 <= len(finished) < 8
    stamps = {path.name: path.stat().st_mtime_ns for path in finished}
    (folder / ".left-by-the-killed-run.safetensors").write_bytes(b"half")
    assert_equal(run(run_folder=folder), uninterrupted)
    # What was finished was not done again.
    assert all((folder / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert_equal(run(run_folder=folder), uninterrupted)


def test_ftri_of_two_processes_gives_each_the_maps_of_one(uninterrupted, tmp_path):
    script = tmp_path / "image.py"
    script.write_text(SCRIPT)
    folder = str(tmp_path / "run")
    port = str(20_000 + os.getpid() % 20_000)
    processes = [
        started(
            [str(script), repr(PROMPTS), folder, str(tmp_path / f"result-{rank}"), "0"],
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    for process in processes:
        output = process.communicate(timeout=200)[0].decode()
        assert process.returncode == 0, output[-2000:]
    for rank in range(2):
        assert_equal(FTRIResult.from_pretrained(tmp_path / f"result-{rank}"), uninterrupted)


def test_ftri_of_a_model_from_a_folder_names_it_without_where_it_lies(tmp_path):
    tiny_model("deepseek_v3").save_pretrained(tmp_path / "secret" / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "secret" / "tiny").eval()
    result = ftri(
        model, tiny_tokenizer(), PROMPTS[:4], lambda response: "a", max_new_tokens=2, run_folder=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    assert result.base_model == "tiny"
    assert MoTEConfig.for_model(model).base_model == "tiny"
    result.save_pretrained(tmp_path / "saved")
    files = [path for folder in ("saved", "run") for path in (tmp_path / folder).iterdir()]
    assert len(files) == 4
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_ftri_of_a_model_whose_weights_overflow_is_refused(tmp_path):
    model = tiny_model("deepseek_v3")
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer()("3")["input_ids"][0]] = float("nan")
    with pytest.raises(DataError, match="must be finite|not finite"):
        ftri(model, tiny_tokenizer(), PROMPTS, lambda response: "a", max_new_tokens=2, progress=False)


def test_run_folder_of_other_settings_is_refused_and_named(tmp_path):
    run(run_folder=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for change, word in (({"max_new_tokens": 5}, "generation"), ({"scope": "last"}, "scope"), ({"seed": 1}, "seed")):
        with pytest.raises(ModelMismatchError, match=word):
            run(run_folder=tmp_path / "run", **change)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_run_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match="not a run folder"):
        run(run_folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_run_folder_with_a_damaged_batch_says_which_and_what_to_do(tmp_path, uninterrupted):
    run(run_folder=tmp_path / "run")
    path = tmp_path / "run" / "batch-000002.safetensors"
    tensors, metadata = read_tensors(path, kind="run_record")
    write_tensors(path, {**tensors, "counts": tensors["counts"][:1]}, metadata)
    with pytest.raises(FileFormatError, match="batch-000002"):
        run(run_folder=tmp_path / "run")
    path.unlink()
    assert_equal(run(run_folder=tmp_path / "run"), uninterrupted)
