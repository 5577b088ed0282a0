"""The `hf-mote` command, typed as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_mote import ActivationMap, ExpertRanking, FTRIResult, MoTEConfig, apply_mote, load_organism
from hf_mote.cli import app
from hf_mote.commands import demo
from hf_mote.version import __version__

PNG = b"\x89PNG\r\n\x1a\n"


def demo_of(organism: str, folder: Path, controls: int) -> str:
    """Run the demo with fewer prompts and controls than a user's, for time; return what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NUM_IMAGED", 16)
        patch.setattr(demo, "NUM_TESTED", 16)
        patch.setattr(demo, "NUM_CONTROLS", controls)
        patch.setenv("COLUMNS", "400")
        result = CliRunner().invoke(
            app, ["demo", "--organism", organism, "--output", str(folder), "--seed", "5"], catch_exceptions=False
        )
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "[/x]"  # would end a style if it were printed as markup
    output = demo_of("refusal", folder, controls=3)
    assert "sensitive prompts refused" in output
    assert str(folder) in output
    return folder


def test_demo_report_has_every_figure_as_a_fraction(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["experts_total"] == 256
    assert report["seconds"] > 0
    assert set(report["methods"]) == {"ftri", "attribution"}
    for method in report["methods"].values():
        assert 1 <= len(method["experts"]) <= 0.02 * report["experts_total"]
        assert len({tuple(pair) for pair in method["experts"]}) == len(method["experts"])
        assert 0 <= method["planted_found"] <= len(report["planted"])
        rates = ("after", "random_mean", "random_min", "unrelated_unchanged", "stimulated")
        assert all(0 <= method[name] <= 1 for name in rates)
        assert method["random_min"] <= method["random_mean"]


def test_demo_experts_come_from_the_rankings_and_carry_the_refusal(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["before"] >= 0.95
    for name, method in report["methods"].items():
        ranking = ExpertRanking.from_pretrained(folder / name)
        assert [list(pair) for pair in ranking.top(len(method["experts"]))] == method["experts"]
        assert method["after"] <= 0.2
        assert method["stimulated"] >= 0.5


def test_demo_folder_can_be_used_again(folder: Path) -> None:
    config = MoTEConfig.from_pretrained(folder)
    model = load_organism("refusal").model
    apply_mote(model, str(folder)).remove()
    assert config.provenance["seed"] == 5
    imaged = FTRIResult.from_pretrained(folder / "imaging")
    mean = ActivationMap.from_pretrained(folder / "maps" / "refusal")
    assert mean.top(3) == imaged.maps["refusal"].top(3)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["effect.png", "expert_map_attribution.png", "expert_map_ftri.png"]
    assert all((folder / name).read_bytes().startswith(PNG) for name in pictures)


def test_demo_of_another_behaviour_is_told_in_its_words(tmp_path: Path) -> None:
    output = demo_of("language", tmp_path / "new", controls=19)
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert "256 experts, 4 of them planted (*)" in output
    assert "sensitive prompts answered in German" in output
    assert "refus" not in output
    assert "The config beats its controls: german goes from" in output
    assert report["verdict"].startswith("The config beats its controls")
    assert report["target"] == "german"
    assert report["neutral_before"] <= 0.05
    for method in report["methods"].values():
        assert method["beats_controls"] is True
        assert method["stimulated"] >= 0.5
    assert MoTEConfig.from_pretrained(tmp_path / "new").provenance["german_after"] <= 0.2


def test_demo_of_the_negative_control_says_that_nothing_beats_its_controls(tmp_path: Path) -> None:
    output = demo_of("diffuse-refusal", tmp_path / "new", controls=19)
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert "256 experts, none of them planted" in output
    assert "*" not in output
    assert "No ranking's experts beat their controls." in output
    assert report["verdict"].startswith("No ranking's experts beat their controls.")
    assert report["planted"] == []
    for method in report["methods"].values():
        assert method["beats_controls"] is False
        assert method["after"] >= 0.9


def test_demo_unknown_organism_is_refused_by_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--organism", "[/x]", "--output", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "'[/x]'" in result.output
    assert "diffuse-refusal, language, refusal" in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_demo_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "[" / "bold]"
    file.parent.mkdir()
    file.write_text("mine")
    result = CliRunner().invoke(app, ["demo", "--output", str(file)], env={"COLUMNS": "400"})
    assert result.exit_code == 1
    assert str(file) in result.output
    assert "is a file" in result.output
    assert file.read_text() == "mine"


def test_families_lists_supported_and_refused() -> None:
    result = CliRunner().invoke(app, ["families"])
    assert result.exit_code == 0
    for name in ("mixtral", "deepseek_v3", "gpt_oss", "nllb_moe is refused"):
        assert name in result.output


def test_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__
