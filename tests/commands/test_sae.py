"""`hf-mote sae train`, `evaluate`, `steer` and `top-tokens`, from a tiny model and a text to a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import planted_links as planted
import pytest
import torch
from command_runs import ATTACK, ran, run, said
from html_pages import check_page, parse_page
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import is_progress_bar_enabled

from hf_mote import BatchTopKSAEModel, LatentExpertMap, SAEReport, SteeringConfig, evaluate_sae
from hf_mote.commands.sae.dead_latents import dead_note
from hf_mote.commands.sae.steer import read_edit
from hf_mote.commands.sae.train import default_hookpoint
from hf_mote.errors import ConfigError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, and texts as JSON lines."""
    folder = tmp_path_factory.mktemp("sae")
    tiny_model("mixtral").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"text": " ".join(WORDS[i % 9 :] + WORDS[: i % 4]) + f" {i} {ATTACK}"[:20]} for i in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "train.yaml").write_text("architecture: batch_topk\ntokens: 3000\nbatch: 128\nk: 3\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    ran(
        "sae", "train", place / "model", place / "texts.jsonl", "--settings", place / "train.yaml", "--k", 4,
        "--latents", 96, "--context-length", 32, "--output", place / "out",
    )  # fmt: skip
    return place / "out"


def test_train_writes_an_sae_that_loads_with_its_report_and_card(trained: Path) -> None:
    sae = AutoModel.from_pretrained(trained)
    assert type(sae) is BatchTopKSAEModel
    assert sae.is_calibrated
    # What is given beside the file of settings comes first.
    assert sae.config.k == 4
    assert (sae.config.num_latents, sae.config.hidden_size) == (96, 32)
    assert sae.config.hookpoint == "model.layers.1.output"
    report = SAEReport.from_pretrained(trained)
    assert 0 < report.fvu < 1
    assert report.l0 == pytest.approx(4, rel=0.3)
    card = (trained / "README.md").read_text()
    assert "FVU (centred)" in card
    assert "AutoModel.from_pretrained" in card
    assert "mixture-of-experts" not in card
    assert "- command: hf-mote sae train " in card
    assert {path.name for path in trained.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "sae_report.json",
    }


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("evaluate", ["TEXT"]),
        ("steer", ["--prompt", "quick", "--edit", "5=x1", "--max-new-tokens", 2]),
        ("top-tokens", ["TEXT", "--latent", 0]),
        ("experts", ["TEXT", "--method", "intervention", "--latent", 0, "--edit", "+5"]),
    ],
)
def test_log_gets_no_bars_of_loading(command: str, arguments: list[object], place: Path, trained: Path) -> None:
    words = [place / "texts.jsonl" if word == "TEXT" else word for word in arguments]
    reading = [] if command == "steer" else ["--tokens", 200, "--context-length", 32]
    result = ran("sae", command, place / "model", trained, *words, *reading)
    assert "%|" not in result.stderr
    assert "Loading" not in result.stderr
    assert is_progress_bar_enabled()


def test_train_says_how_far_it_is_in_lines_that_can_be_read(place: Path, tmp_path: Path) -> None:
    words = ["sae", "train", place / "model", place / "texts.jsonl", "--tokens", 1600, "--batch", 64]
    result = ran(*words, "--context-length", 32, "--evaluation-tokens", 100, "--output", tmp_path / "out")
    steps = [line for line in result.stderr.splitlines() if "step " in line]
    assert len(steps) == 8
    assert re.fullmatch(r"… step 3 of 25: loss \d.*, FVU 0\.\d+, L0 4", steps[0])
    assert steps[-1].startswith("… step 24 of 25: ")
    assert "{" not in result.output
    assert "step" not in ran(*words, "--output", tmp_path / "quiet", "--quiet").stderr


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("train", []), ("adapt", ["SAE"]), ("evaluate", ["SAE"]), ("top-tokens", ["SAE", "--latent", 0]),
        ("experts", ["SAE"]),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_is_refused_before_anything_is_loaded(
    tmp_path: Path, command: str, more: list[object]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    result = run("sae", command, "no/model", *more, "no-text.txt", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "holds something already" in said(result)


def test_evaluate_measures_the_same_sae(place: Path, trained: Path) -> None:
    result = ran(
        "sae", "evaluate", place / "model", trained, place / "texts.jsonl", "--tokens", 500, "--context-length", 32,
        "--output", place / "evaluated",
    )  # fmt: skip
    assert "cross entropy recovered (zero ablation)" in said(result)
    report = SAEReport.from_pretrained(place / "evaluated")
    assert report.tokens >= 450
    assert (place / "evaluated" / "sae_report.png").read_bytes()[:4] == b"\x89PNG"
    page = check_page((place / "evaluated" / "report.html").read_text(encoding="utf-8"))
    rows = [[cell.text for cell in row.children] for row in page.one("runs").all("tr")]
    assert [row[0] for row in rows[1:]] == ["clean", "sae", "zero", "mean", "resample"]
    assert page.one("measured").all("tr")[1].all("td")[0].text == f"{report.tokens:,}"
    # Drawn by the page, in its colours and to its width, and beside it as a file.
    assert page.one("picture").all("img") == []
    charts = page.one("picture").all("figure")
    assert [len(chart.all("polyline")) for chart in charts] == [2 if report.zipf else 1, 0, 1]
    assert len(charts[1].all("rect")) == len(report.ce)
    assert f"clean: {report.ce['clean']:.4g}" in charts[1].text


def test_tokens_that_are_left_out_are_left_out_of_training_measures_and_adapter(place: Path, tmp_path: Path) -> None:
    excluding = ["--exclude-positions", "first:2", "--max-norm", 1.1]
    read = ["--context-length", 32, *excluding]
    model, text = place / "model", place / "texts.jsonl"
    ran("sae", "train", model, text, "--tokens", 1000, "--batch", 100, *read, "--output", tmp_path / "sae")
    trained = SAEReport.from_pretrained(tmp_path / "sae")
    ran(
        "sae", "adapt", model, tmp_path / "sae", text, "--tokens", 1000, "--rank", 2, *read,
        "--output", tmp_path / "adapter",
    )  # fmt: skip
    without = SAEReport.from_pretrained(tmp_path / "adapter" / "without")
    assert (without.tokens, without.fvu) == (trained.tokens, pytest.approx(trained.fvu))
    evaluate = ["sae", "evaluate", model, tmp_path / "sae", text, "--context-length", 32]
    counts = []
    for name, more in (("all", []), ("first", excluding[:2]), ("both", excluding)):
        ran(*evaluate, *more, "--output", tmp_path / name)
        counts.append(SAEReport.from_pretrained(tmp_path / name).tokens)
    assert counts[0] > counts[1] > counts[2]
    card = (tmp_path / "adapter" / "README.md").read_text()
    (call,) = re.findall(r"splice_sae\(model, sae, (.*)\)", card)
    form = r"exclude_tokens=tokenizer\.all_special_ids, exclude_positions='first:2', norm_limit=(\d+\.\d+)"
    assert re.fullmatch(form, call)
    assert re.search(rf"splice_sae\(model, sae, {form}\)", (tmp_path / "sae" / "README.md").read_text())


def test_adapt_writes_an_adapter_with_reports_that_evaluate_repeats(place: Path, trained: Path) -> None:
    result = ran(
        "sae", "adapt", place / "model", trained, place / "texts.jsonl", "--tokens", 3000, "--context-length", 32,
        "--output", place / "adapter", "--rank", 4,
    )  # fmt: skip
    assert "cross entropy recovered (zero ablation)" in said(result)
    without, with_it = (SAEReport.from_pretrained(place / "adapter" / name) for name in ("without", "with"))
    assert with_it.kl["sae"] < without.kl["sae"]
    assert json.loads((place / "adapter" / "adapter_config.json").read_text())["r"] == 4
    card = (place / "adapter" / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert str(place) not in card.split("## How it was made")[0]
    again = ["sae", "evaluate", place / "model", trained, place / "texts.jsonl", "--context-length", 32]
    ran(*again, "--output", place / "plain")
    ran(*again, "--adapter", place / "adapter", "--output", place / "again")
    plain, adapted = (SAEReport.from_pretrained(place / name) for name in ("plain", "again"))
    assert adapted.ce["clean"] == pytest.approx(plain.ce["clean"])
    assert adapted.kl["sae"] < plain.kl["sae"]
    wrong = run(*again, "--adapter", place / "model")
    assert wrong.exit_code == 1
    assert "cannot be loaded" in said(wrong)


def test_steer_shows_answers_with_and_without_and_saves_the_config(place: Path, trained: Path) -> None:
    result = ran(
        "sae", "steer", place / "model", trained, "--prompt", "quick", "--edit", "5=+80", "--edit", "7=ablate",
        "--max-new-tokens", 6, "--output", place / "steering",
    )  # fmt: skip
    assert "1 of 1 answers changed" in said(result)
    config = SteeringConfig.from_pretrained(place / "steering")
    assert config.edits == [[5, "add", 80.0], [7, "ablate", 0.0]]
    unchanged = ran("sae", "steer", place / "model", trained, "--prompt", "quick", "--edit", "5=x1")
    assert "0 of 1 answers changed" in said(unchanged)


def test_top_tokens_shows_where_latents_are_active(place: Path, trained: Path) -> None:
    latents = [value for latent in range(96) for value in ("--latent", latent)]
    result = ran(
        "sae", "top-tokens", place / "model", trained, place / "texts.jsonl", *latents, "--top", 3, "--tokens", 500,
        "--output", place / "page", "--neuronpedia", "tiny/res-96",
    )  # fmt: skip
    assert "»" in said(result)
    figures = json.loads((place / "page" / "report.json").read_text())
    active = [entry for entry in figures["latents"] if entry["excerpts"]]
    assert active
    for entry in active:
        for excerpt in entry["excerpts"]:
            assert excerpt["values"][excerpt["place"]] == max(excerpt["values"])
        peaks = [max(excerpt["values"]) for excerpt in entry["excerpts"]]
        assert peaks == sorted(peaks, reverse=True)
        assert entry["largest"] == peaks[0]
    assert (place / "page" / "tiny" / "1-res-96" / "features" / "batch-0.jsonl.gz").is_file()
    assert "tiny/1-res-96/source.jsonl" in figures["files"]
    # What was read is told, not what was asked for.
    longest = tiny_model("mixtral").config.max_position_embeddings
    ran(
        "sae", "top-tokens", place / "model", trained, place / "texts.jsonl", "--latent", 0, "--tokens", 100,
        "--context-length", longest + 1, "--output", place / "long", "--neuronpedia", "tiny/res-96",
    )  # fmt: skip
    source = json.loads((place / "long" / "tiny" / "1-res-96" / "source.jsonl").read_text())
    assert source["num_tokens_in_prompt"] == longest
    text = (place / "page" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert "latents are active somewhere" in parse_page(text).text


def test_top_tokens_without_a_latent_shows_those_active_on_most_tokens_and_says_so(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    reading = [place / "model", trained, place / "texts.jsonl", "--tokens", 400, "--context-length", 32]
    every = [value for latent in range(96) for value in ("--latent", latent)]
    ran("sae", "top-tokens", *reading, *every, "--output", tmp_path / "every")
    told = ran("sae", "top-tokens", *reading, "--output", tmp_path / "page")
    densities = {
        entry["latent"]: entry["density"]
        for entry in json.loads((tmp_path / "every" / "report.json").read_text())["latents"]
    }
    expected = sorted(densities, key=lambda latent: (-densities[latent], latent))[:10]
    figures = json.loads((tmp_path / "page" / "report.json").read_text())
    assert [entry["latent"] for entry in figures["latents"]] == expected
    silent = sum(density == 0 for density in densities.values())
    assert figures["chosen"] in said(told)
    assert figures["chosen"].startswith("No --latent was given: of 96 latents these 10 are active on most of the 558")
    assert f"{silent} are active on none." in figures["chosen"]
    assert figures["chosen"] in parse_page((tmp_path / "page" / "report.html").read_text(encoding="utf-8")).text
    planned = said(ran("sae", "top-tokens", *reading, "--dry-run"))
    assert "latents 10, those active on most tokens, found by a first reading" in planned


@pytest.fixture(scope="module")
def silenced(place: Path, trained: Path) -> Path:
    """The SAE with half of its latents, but the first, never active, and its report."""
    sae = AutoModel.from_pretrained(trained).eval()
    with torch.no_grad():
        sae.b_enc[1:48] = -1e6
    sae.save_pretrained(place / "silenced")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    rows = [json.loads(line) for line in (place / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    model = tiny_model("mixtral")
    evaluate_sae(model, sae, rows, tokenizer, context_length=32).save_pretrained(place / "silenced")
    return place / "silenced"


def test_latent_that_never_fires_is_said_to(place: Path, silenced: Path) -> None:
    reading = [place / "model", silenced, place / "texts.jsonl", "--tokens", 400, "--context-length", 32]
    lines = ran("sae", "top-tokens", *reading, "--latent", 1, "--latent", 0).stdout.splitlines()
    assert "latent 1: no token of this text activates it" in lines
    assert any(line.startswith("latent 0: active on ") for line in lines)
    assert "47 are active on none." in said(ran("sae", "top-tokens", *reading))
    with torch.no_grad():
        sae = AutoModel.from_pretrained(silenced)
        sae.b_enc[:] = -1e6
    sae.save_pretrained(place / "silent")
    refused = run("sae", "top-tokens", place / "model", place / "silent", *reading[2:])
    assert refused.exit_code == 1
    assert "TEXT: activates no latent of the SAE (got 558 tokens)" in said(refused)


def test_steer_says_of_a_latent_that_its_report_never_saw_it(
    place: Path, silenced: Path, trained: Path, tmp_path: Path
) -> None:
    words = ["--prompt", "quick", "--edit", "3=ablate", "--edit", "0=x1", "--max-new-tokens", 2]
    tokens = SAEReport.from_pretrained(silenced).tokens
    told = said(ran("sae", "steer", place / "model", silenced, *words))
    assert "0 of 1 answers changed" in told
    assert f"latent 3 is active on none of {tokens:,} tokens." in told
    assert "active on none" not in said(ran("sae", "steer", place / "model", silenced, *words[:2], "--edit", "0=x1"))
    # Without a report, or with one that cannot be read, nothing is known.
    sae = AutoModel.from_pretrained(silenced)
    sae.save_pretrained(tmp_path / "alone")
    assert "active on none" not in said(ran("sae", "steer", place / "model", tmp_path / "alone", *words))
    (tmp_path / "alone" / SAEReport.file_name).write_text("{}")
    assert "active on none" not in said(ran("sae", "steer", place / "model", tmp_path / "alone", *words))


def test_many_dead_latents_are_said_with_what_it_means(place: Path, silenced: Path, trained: Path) -> None:
    reading = [place / "texts.jsonl", "--tokens", 400, "--context-length", 32]
    few = SAEReport.from_pretrained(trained)
    assert few.dead_fraction <= 0.1
    assert dead_note(few) is None
    told = said(ran("sae", "evaluate", place / "model", silenced, *reading))
    assert re.search(r"4[78] of 96 latents \((49|50)%\) are active on none of these \d+ tokens: they are dead", told)
    assert "--option" not in told
    dead = SAEReport.from_pretrained(silenced)
    config = AutoModel.from_pretrained(trained).config
    late = dead_note(dead, config, 300_000)
    assert late is not None
    assert "after 10,000,000 tokens, and 300,000 were read. With --option dead_after_tokens=60000 it begins" in late
    begun = dead_note(dead, type(config)(**{**config.to_dict(), "dead_after_tokens": 5_000}), 300_000)
    assert begun is not None
    assert "--option" not in begun
    assert "--latents" in begun


def test_train_says_that_many_latents_are_dead(place: Path, tmp_path: Path) -> None:
    words = ["--tokens", 128, "--batch", 64, "--latents", 500, "--k", 1, "--context-length", 32]
    told = said(ran("sae", "train", place / "model", place / "texts.jsonl", *words, "--output", tmp_path / "out"))
    report = SAEReport.from_pretrained(tmp_path / "out")
    dead = sum(density == 0 for density in report.density)
    assert (
        f"{dead} of 500 latents ({report.dead_fraction:.0%}) are active on none of these {report.tokens} tokens"
        in told
    )
    assert "10,000,000 tokens, and 128 were read. With --option dead_after_tokens=25 it begins" in told


def test_experts_shows_which_latents_drive_them_by_weights_and_by_intervention(place: Path, trained: Path) -> None:
    at_router = place / "router_sae"
    ran(
        "sae", "train", place / "model", place / "texts.jsonl", "--settings", place / "train.yaml", "--latents", 96,
        "--context-length", 32, "--output", at_router, "--hookpoint", "model.layers.1.mlp.gate.input",
    )  # fmt: skip
    result = ran("sae", "experts", place / "model", at_router, place / "texts.jsonl", "--output", place / "links")
    links = LatentExpertMap.from_pretrained(place / "links")
    first = links.top(1)[0]
    assert f"latent {first.latent}: {first.value:+.4g} on expert {first.expert} of layer 1" in said(result)
    page = check_page((place / "links" / "report.html").read_text(encoding="utf-8"))
    assert page.one("links").all("tr")[1].all("td")[0].text == str(first.latent)
    assert f"latent {first.latent}" in page.one("experts").text
    assert len([one for one in page.all("section") if one.attributes["id"].startswith("latent-")]) == 5
    ran(
        "sae", "experts", place / "model", trained, place / "texts.jsonl", "--method", "intervention", "--edit", "+40",
        "--latent", 3, "--latent", 8, "--tokens", 300, "--output", place / "changed",
    )  # fmt: skip
    changed = LatentExpertMap.from_pretrained(place / "changed")
    assert (changed.latents, changed.layers) == ((3, 8), (0, 1, 2))
    refused = run("sae", "experts", place / "model", trained)
    assert refused.exit_code == 1
    assert "not the input of a router" in said(refused)
    assert "needs a text" in said(run("sae", "experts", place / "model", trained, "--method", "intervention"))


def test_experts_by_all_methods_stand_side_by_side(tmp_path: Path) -> None:
    model, sae = planted.planted_links()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    sae.save_pretrained(tmp_path / "sae")
    (tmp_path / "texts.txt").write_text("\n".join(planted.TEXTS), encoding="utf-8")
    (tmp_path / "more.yaml").write_text("method: [prediction, weights, intervention]\ntop: 4\n", encoding="utf-8")
    result = ran(
        "sae", "experts", tmp_path / "model", tmp_path / "sae", tmp_path / "texts.txt", "--settings",
        tmp_path / "more.yaml", "--output", tmp_path / "links",
    )  # fmt: skip
    predicted, weights, changed = (
        LatentExpertMap.from_pretrained(tmp_path / "links" / name)
        for name in ("", "links/weights", "links/intervention")
    )
    assert [links.method for links in (predicted, weights, changed)] == ["prediction", "weights", "intervention"]
    # Those that the other methods put first are changed.
    assert {*changed.latents} == {link.latent for links in (predicted, weights) for link in links.top(4)}
    assert len(changed.latents) < 24
    printed = said(result)
    for name in ("prediction", "weights", "intervention"):
        assert f"By {name}:" in printed
    assert f"latent {planted.COPY}: +0.9" in printed
    page = check_page((tmp_path / "links" / "report.html").read_text(encoding="utf-8"))
    rows = [[cell.text for cell in row.children] for row in page.one("methods").all("tr")]
    assert rows[0] == ["latent", "layer", "expert", "prediction", "weights", "intervention"]
    by_latent = {row[0]: row[3:] for row in rows[1:] if row[1:3] == ["0", str(planted.EXPERT)]}
    copy, driver = (by_latent[f"latent {latent}"] for latent in (planted.COPY, planted.DRIVER))
    assert copy[0].startswith("+0.9")
    assert copy[1:] == ["0", "0"]
    assert driver[1:] == ["+3.5", "−1"]
    assert "predicts most: for expert 5 of layer 0" in page.one("verdict").text
    assert "is chosen less often" in page.one("verdict").text
    figures = json.loads((tmp_path / "links" / "report.json").read_text())
    assert set(figures["methods"]) == {"prediction", "weights", "intervention"}
    assert figures["method"] == "prediction"
    assert figures["links"] == figures["methods"]["prediction"]
    assert "links/weights/latent_expert_map.safetensors" in figures["files"]
    # One value of what may be given several times is a list of one.
    (tmp_path / "more.yaml").write_text("method: prediction\n", encoding="utf-8")
    needs = run("sae", "experts", tmp_path / "model", tmp_path / "sae", "--settings", tmp_path / "more.yaml")
    assert "TEXT: method prediction needs a text" in said(needs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architecture", "top"], "Did you mean 'topk'?"),
        (["--hookpoint", "model.layer.1"], "unknown name"),
        (["--architecture", "relu", "--k", "3"], "has none"),
        (["--option", "l1"], "must be a name and a value"),
        (["--option", "l1_coefficient=0.1"], "unknown name"),
        (["--k", "500", "--latents", "20"], "--k: must be at most --latents (got 500 of 20)"),
    ],
)
def test_train_refuses_what_cannot_be_and_writes_nothing(arguments: list[str], message: str, place: Path) -> None:
    result = run(
        "sae", "train", place / "model", place / "texts.jsonl", "--output", place / "nothing", "--tokens", 500,
        "--batch", 64, *arguments,
    )  # fmt: skip
    assert result.exit_code == 1
    assert message in said(result)
    assert not (place / "nothing").exists()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "words",
    [
        ["train", "MODEL", "TEXT", "--output", "OUT"], ["adapt", "MODEL", "SAE", "TEXT", "--output", "OUT"],
        ["evaluate", "MODEL", "SAE", "TEXT"], ["top-tokens", "MODEL", "SAE", "TEXT"],
        ["experts", "MODEL", "SAE", "TEXT"],
        ["steer", "MODEL", "SAE", "--prompt", "quick", "--edit", "5=+1"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_hookpoint_that_the_model_lacks_is_refused_before_weights_are_read(
    words: list[str], place: Path, trained: Path, tmp_path: Path
) -> None:
    named = {"MODEL": place / "model", "TEXT": place / "texts.jsonl", "SAE": trained, "OUT": tmp_path / "out"}
    result = run("sae", *(named.get(word, word) for word in words), "--hookpoint", "model.layers.9.output")
    assert result.exit_code == 1
    assert "unknown name (got 'model.layers.9" in said(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "more"), [("train", []), ("adapt", ["SAE"]), ("evaluate", ["SAE"])])
def test_dry_run_says_how_a_text_file_is_cut_and_rows_are_not(
    command: str, more: list[object], place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no path is cut
    line = "the quick brown fox jumps\n"  # of 26 characters, so that 154 of them are the first 4,000 or more
    (tmp_path / "lines.txt").write_text(line * 3000, encoding="utf-8")
    count = -(-3000 // 154)
    cut = "; a text file is cut at line ends, into texts of 4,000 characters or a little more"
    held_out = "" if command == "evaluate" else f", {count // 10} held out"
    kept = count if command == "evaluate" else count - count // 10
    reading = ["--context-length", 16, "--output", tmp_path / "out", "--dry-run"]

    def planned(text: Path) -> str:
        return said(ran("sae", command, place / "model", *[trained for _ in more], text, *reading))

    assert f"texts {kept} from {tmp_path / 'lines.txt'}{held_out}{cut} tokens " in planned(tmp_path / "lines.txt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.md").write_text(line * 3000, encoding="utf-8")
    assert cut in planned(tmp_path / "folder")
    assert "is cut" not in planned(place / "texts.jsonl")


def test_texts_and_settings_that_cannot_be_read_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("short", encoding="utf-8")
    few = run("sae", "train", place / "model", tmp_path / "one.txt", "--output", tmp_path / "o")
    assert "too short to hold some out (got 1 texts, expected 10). Give more text, or JSON lines" in said(few)
    assert "a text file is cut at line ends, into texts of 4,000 characters" in said(few)
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    unnamed = said(run("sae", "train", place / "model", tmp_path / "bad.jsonl", "--output", tmp_path / "o"))
    assert "has no 'text' (got body, expected 'text'" in unnamed
    assert "--text-column" in unnamed
    (tmp_path / "bad.csv").write_text("text\n" + "a b c\n" * 3000, encoding="utf-8")
    table = said(run("sae", "train", place / "model", tmp_path / "bad.csv", "--output", tmp_path / "o"))
    assert "must be a text or JSON lines" in table
    (tmp_path / "latin.txt").write_bytes("où".encode("latin-1"))
    encoded = said(run("sae", "train", place / "model", tmp_path / "latin.txt", "--output", tmp_path / "o"))
    assert "must be UTF-8 text. Save it as UTF-8." in encoded
    missing = ["--output", tmp_path / "o", "--settings", tmp_path / "missing.yaml"]
    unread = said(run("sae", "train", place / "model", place / "texts.jsonl", *missing))
    assert unread.count("cannot be read") == 1
    (tmp_path / "bad.yaml").write_text("tokns: 3\n", encoding="utf-8")
    wrong = run(
        "sae",
        "train",
        place / "model",
        place / "texts.jsonl",
        "--output",
        tmp_path / "o",
        "--settings",
        tmp_path / "bad.yaml",
    )
    assert wrong.exit_code == 2
    assert "tokens" in said(wrong)


def test_edits_are_read_and_others_refused() -> None:
    assert read_edit("12=+5") == (12, ("add", 5.0))
    assert read_edit("12=-2.5") == (12, ("add", -2.5))
    assert read_edit("12=x2") == (12, ("multiply", 2.0))
    assert read_edit("12=clamp:5") == (12, ("clamp", 5.0))
    assert read_edit("12=ablate") == (12, "ablate")
    for wrong in ("12", "x=3", "12=erase", "12=clamp:"):
        with pytest.raises(ConfigError, match="must be an edit"):
            read_edit(wrong)


def test_default_hookpoint_is_the_middle_layer_s_output() -> None:
    assert default_hookpoint(tiny_model("mixtral")) == "model.layers.1.output"
