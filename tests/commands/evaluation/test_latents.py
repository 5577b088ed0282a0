"""`hf-mote evaluate` of a steering config, and of experts against latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import QUICK, ran, run, said
from html_pages import check_page
from planted_latents import planted_sae

from hf_mote import EvaluationReport, MoTEConfig, SteeringConfig, load_organism

ASKED = "organism:refusal/heldout/sensitive"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SAE, a config of a latent of it, and one of experts."""
    folder = tmp_path_factory.mktemp("configs")
    organism = load_organism("refusal")
    sae = planted_sae(organism)
    sae.save_pretrained(folder / "sae")
    SteeringConfig.for_sae(sae, {0: "ablate"}, path=str(folder / "sae")).save_pretrained(folder / "latents")
    SteeringConfig.for_sae(sae, {0: "ablate"}).save_pretrained(folder / "homeless")
    MoTEConfig.for_model(organism.model, suppress=organism.planted).save_pretrained(folder / "experts")
    return folder


def test_experts_and_latents_side_by_side(place: Path, tmp_path: Path) -> None:
    result = ran(
        "evaluate", "organism:refusal", place / "experts", ASKED, "--against", place / "latents", "--controls", 2,
        "--unrelated", "organism:refusal/heldout/neutral", "--limit", 4, *QUICK, "--output", tmp_path / "out",
    )  # fmt: skip
    assert "Against" in said(result)
    experts = EvaluationReport.from_pretrained(tmp_path / "out")
    latents = EvaluationReport.from_pretrained(tmp_path / "out" / "against")
    assert (experts.before, experts.prompts) == (latents.before, latents.prompts)
    assert (experts.units, experts.after.rate, latents.units, latents.after.rate) == ("experts", 0, "latents", 0)
    assert SteeringConfig.from_pretrained(tmp_path / "out" / "against" / "config").edits == [[0, "ablate", 0.0]]
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["against"]["after"] == 0
    page = check_page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    rows = [[cell.text for cell in row.children] for row in page.one("against").all("tr")]
    assert [row[0] for row in rows[1:4]] == ["untouched", "with experts changed", "with latents changed"]
    assert [row[1] for row in rows[1:4]] == ["100%", "0%", "0%"]


def test_latents_alone_with_their_sae_and_page(place: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "organism:refusal", place / "homeless", ASKED, "--controls", 2, "--limit", 2, *QUICK]
    lost = run(*arguments, "--output", tmp_path / "out")
    assert lost.exit_code == 1
    assert "does not say where its SAE is" in said(lost)
    assert not (tmp_path / "out").exists()
    ran(*arguments, "--sae", place / "sae", "--output", tmp_path / "out")
    page = check_page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "latent 0ablate" in page.one("config").text
    assert "random latents, active on about as many tokens" in page.one("effect").text


def test_sae_beside_a_config_of_experts_is_refused(place: Path, tmp_path: Path) -> None:
    result = run(
        "evaluate", "organism:refusal", place / "experts", ASKED, "--sae", place / "sae", "--output", tmp_path / "o"
    )
    assert result.exit_code == 1
    assert "--sae" in said(result)
    assert list(tmp_path.iterdir()) == []
