"""`hf-mote grid`: a file of prompts that the other commands read, with the groups they take."""

import json

from command_runs import ran, run, said

from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import read_prompts


def test_grid_writes_prompts_with_the_fields_they_were_filled_with(tmp_path):
    places = tmp_path / "places.txt"
    places.write_text("in Vienna\n\nin Rome\n", encoding="utf-8")
    file = tmp_path / "prompts.jsonl"
    asked = ["grid", "What happened {time} {place}?", "--value", "time=in 1911|in 1912", "--value", f"place=@{places}"]
    result = ran(*asked, "--label", "class=sensitive", "--output", file)
    assert "4 prompts" in said(result)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {
        "prompt": "What happened in 1911 in Rome?", "time": "in 1911", "place": "in Rome", "class": "sensitive",
    }  # fmt: skip
    read = read_prompts(str(file), Organisms())
    assert read.column("place") == ["in Vienna", "in Rome"] * 2
    assert run(*asked, "--output", file).exit_code != 0
    ran(*asked, "--label", "class=other", "--append", "--output", file)
    assert len(read_prompts(str(file), Organisms()).prompts) == 8


def test_grid_refuses_what_makes_no_prompts_and_writes_nothing(tmp_path):
    file = tmp_path / "prompts.jsonl"
    for arguments, word in [
        (["{a}", "--value", "a"], "must be a name with values"),
        (["{a}", "--value", "b=x"], "must be those that have values"),
        (["{a}", "--value", "a=x", "--value", "a=y"], "twice"),
        (["{a}", "--value", "a=@missing"], "cannot be read"),
        (["{a}", "--value", "a=x|x"], "a value twice"),
        (["{a}", "--value", "a=x", "--label", "a=z"], "another field"),
        (["{prompt}", "--value", "prompt=x"], "another field"),
    ]:
        result = run("grid", *arguments, "--output", file)
        assert result.exit_code != 0
        assert word in said(result)
    assert not file.exists()
