"""`--latents`: the pages of `ftri` and `attribute` show an expert's latents, of a map of the same model alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import QUICK, REFUSAL, ran, run, said
from html_pages import Element, check_page

from hf_mote import ExpertRanking, LatentExpertMap, load_organism
from hf_mote.commands.latent_maps import check_latent_maps, latent_maps
from hf_mote.errors import ModelMismatchError
from hf_mote.routing.sites.routed_model import RoutedModel

ATTRIBUTE = [
    *("attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 4, "--target", REFUSAL),
    *("--baseline-field", "answer"),
]


def page_of(folder: Path) -> Element:
    return check_page((folder / "report.html").read_text(encoding="utf-8"))


def data_of(page: Element) -> dict[str, Any]:
    (data,) = (script for script in page.all("script") if script.attributes.get("id") == "data")
    loaded: dict[str, Any] = json.loads(data.text)
    return loaded


def test_attribute_shows_the_latents_of_each_expert(latents_run: Path, tmp_path_factory: Any, request: Any) -> None:
    maps = list(latent_maps([str(request.getfixturevalue("latent_maps"))]).values())
    assert [links.method for links in maps] == ["prediction", "weights"]
    page = page_of(latents_run)
    ranking = ExpertRanking.from_pretrained(latents_run)
    shown = page.one("latents").all("details")
    assert [part.all("h3")[0].text for part in shown] == [f"Layer {a}, expert {b}" for a, b in ranking.top(4)]
    for part, (layer, expert) in zip(shown, ranking.top(4), strict=True):
        tables = [[[cell.text for cell in row.children] for row in table.all("tr")] for table in part.all("table")]
        assert len(tables) == (2 if layer == 2 else 1)
        first = maps[0].for_expert(layer, expert, 5)
        assert [row[0] for row in tables[0][1:]] == [f"latent {link.latent}" for link in first]
        signs = ["+" if link.value > 0 else "−" for link in first]
        assert [row[1][0] for row in tables[0][1:]] == signs
    data = data_of(page)["latents"]
    assert data["all"]
    assert [len(one["experts"]) for one in data["maps"]] == [256, 64]
    layer, expert = ranking.top(1)[0]
    best = maps[0].for_expert(layer, expert, 1)[0]
    assert data["maps"][0]["experts"][f"{layer}.{expert}"][0][0] == best.latent
    provenance = json.loads((latents_run / "report.json").read_text())["provenance"]
    assert "links/weights" in provenance["latents"]


def test_ftri_shows_them_and_without_a_map_the_page_says_nothing_of_latents(
    ftri_run: Path, latent_maps: Path, tmp_path: Path
) -> None:
    plain = page_of(ftri_run)
    assert "latents" not in data_of(plain)
    assert [one for one in plain.all("section") if one.attributes["id"] == "latents"] == []
    assert "latents" not in json.loads((ftri_run / "report.json").read_text())["provenance"]
    ran(
        "ftri", "organism:refusal", "organism:refusal/train", "--limit", 4, "--top", 3, "--traced", 0, "--resamples",
        9, "--latents", latent_maps / "links" / "weights", "--output", tmp_path / "out", *QUICK,
    )  # fmt: skip
    page = page_of(tmp_path / "out")
    assert len(page.one("latents").all("details")) == 3
    (one,) = data_of(page)["latents"]["maps"]
    assert one["title"] == "Latents that drive it, by the router's weights"
    assert {name.split(".")[0] for name in one["experts"]} == {"2"}


def test_map_of_another_model_is_refused_before_anything_is_computed(
    latent_maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no path is cut
    links = LatentExpertMap.from_pretrained(latent_maps)
    assert links.fingerprint is not None
    other = {**links.fingerprint, "router_sha256": "0" * 64}
    renewed(links, fingerprint=other).save_pretrained(tmp_path / "other")
    refused = run(*ATTRIBUTE, "--latents", tmp_path / "other", "--output", tmp_path / "out")
    assert refused.exit_code == 1
    assert "is a map of another model (got other weights in a model of this shape" in said(refused)
    assert "hf-mote sae experts" in said(refused)
    missing = run(*ATTRIBUTE, "--latents", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert missing.exit_code == 1
    assert "nowhere" in said(missing)
    assert not (tmp_path / "out").exists()


def renewed(links: LatentExpertMap, **fields: Any) -> LatentExpertMap:
    names = ("latents", "layers", "method", "tokens", "together", "chosen", "num_tokens", "fingerprint", "values")
    return LatentExpertMap(**{name: getattr(links, name) for name in names} | fields)


def test_map_without_a_fingerprint_is_checked_by_layers_and_experts(latent_maps: Path) -> None:
    routed = RoutedModel(load_organism("refusal").model)
    links = renewed(LatentExpertMap.from_pretrained(latent_maps), fingerprint=None)
    check_latent_maps({"m": links}, routed)
    narrow = LatentExpertMap(
        torch.zeros(1, 1, 9, dtype=torch.float64), (0,), (1,), "weights", torch.zeros(1, dtype=torch.int64)
    )
    for wrong, got in ((renewed(links, layers=(1, 2, 3, 9)), "layer 9"), (narrow, "9 experts")):
        with pytest.raises(ModelMismatchError, match=f"--latents m: is a map of another model .got {got}"):
            check_latent_maps({"m": wrong}, routed)
    made = LatentExpertMap.from_pretrained(latent_maps)
    assert made.fingerprint is not None
    with pytest.raises(ModelMismatchError, match="got model_type"):
        check_latent_maps({"m": renewed(made, fingerprint={**made.fingerprint, "model_type": "other"})}, routed)
