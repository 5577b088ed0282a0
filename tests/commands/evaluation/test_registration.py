"""`hf-mote evaluate --preregister`: written first, then held to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import QUICK, ran, run, said

from hf_mote import EvaluationReport, MoTEConfig, load_organism
from hf_mote.commands.bundles.evidence import Reading
from hf_mote.commands.evaluation.material import Material, read_material
from hf_mote.commands.evaluation.registration import registered_digest
from hf_mote.commands.model import Organisms
from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.routing.sites.routed_model import RoutedModel

SETTINGS = {"num_controls": 2, "seed": 0}


def material_of(path: Path, **lines: str) -> Material:
    sources = {}
    for name, text in lines.items():
        (path / f"{name}.txt").write_text(text)
        sources[name] = str(path / f"{name}.txt")
    rest = dict.fromkeys(("unrelated", "opposite", "texts", "conversations"))
    return read_material(Reading(), Organisms(), seed=0, **{**rest, **sources})  # type: ignore[arg-type]


def test_evaluate_registers_before_and_measures_only_that(attribute_run: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    asked = [
        "evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--limit", 6,
        "--controls", 2, "--preregister", plan, *QUICK,
    ]  # fmt: skip
    assert "Nothing was measured" in said(ran(*asked, "--output", tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    other = run(*asked, "--controls", 3, "--output", tmp_path / "a")
    assert other.exit_code != 0
    assert "other settings" in said(other)
    assert not (tmp_path / "a").exists()
    ran(*asked, "--output", tmp_path / "a")
    report = EvaluationReport.from_pretrained(tmp_path / "a")
    assert report.preregistration == json.loads(plan.read_text())["digest"]


def test_registered_digest_is_none_once_and_then_holds_the_material(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    routed, plan = RoutedModel(organism.model), tmp_path / "plan.json"
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)

    def digest(*changes: MoTEConfig, **lines: str) -> str | None:
        material = material_of(tmp_path, **lines)
        judge = RefusalJudge()
        return registered_digest(plan, routed, changes, material, judge=judge, target="refusal", settings=SETTINGS)

    asked = {"prompts": "a\nb\n", "unrelated": "c\n", "texts": "d e\n"}
    assert digest(config, **asked) is None
    assert digest(config, **asked) == json.loads(plan.read_text())["digest"]
    for other in ({"prompts": "a\n"}, {"unrelated": "x\n"}, {"texts": "y z\n"}, {"opposite": "w\n"}):
        with pytest.raises(HFMoTEError, match="other"):
            digest(config, **{**asked, **other})
    with pytest.raises(HFMoTEError, match="other"):
        digest(config, config, **asked)


def test_registered_digest_refuses_latents(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    material = material_of(tmp_path, prompts="a\n")
    with pytest.raises(ConfigError, match="does not support configs of latents"):
        registered_digest(
            tmp_path / "plan.json",
            RoutedModel(organism.model),
            [object()],  # type: ignore[list-item]
            material,
            judge=RefusalJudge(),
            target="refusal",
            settings=SETTINGS,
        )
    assert not (tmp_path / "plan.json").exists()
