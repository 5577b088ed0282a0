"""Every place that reads or writes is one that a reader of the fuzzer, or a writer that is killed, goes through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import places

HERE = Path(__file__).parent


def test_every_place_has_a_reader_that_is_fuzzed_or_a_writer_that_is_killed() -> None:
    path = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent, HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "places.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_places_are_found_by_what_is_called_in_them() -> None:
    found = places.places(places.READS)
    assert {"files.read_json", "sae.training.cache.WindowCache.read", "commands.sae.texts._of_file"} <= set(found)
    written = places.places(places.WRITES, but_in_drafts=True)
    assert {"files.write_json", "sae.training.cache.WindowCache.write", "files.replacing"} <= set(written)
    # What stands in the block of a draft counts by what makes the draft.
    assert "mote.baked_model.BakedModel.save_pretrained" in written
    assert len(found) > 50
    assert len(written) > 50
