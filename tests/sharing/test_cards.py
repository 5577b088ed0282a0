"""Cards: the Hub's metadata, sections in their order, and the author's words."""

from __future__ import annotations

import huggingface_hub
import pytest

from hf_mote.errors import ConfigError
from hf_mote.sharing.cards import CardNotes, Evidence, Picture, card_header, compose_card, evidence_of


@pytest.mark.parametrize(("model", "kept"), [("org/model", True), ("/home/me/model", False), ("model", False)])
def test_card_header_base_model_only_if_it_reads_as_hub_id(model: str, kept: bool) -> None:
    data = huggingface_hub.ModelCard(card_header(tags=["ftri"], base_model=model)).data
    assert data.library_name == "hf_mote"
    assert data.tags == ["hf_mote", "mixture-of-experts", "ftri"]
    assert (data.base_model == model) is kept


def test_card_header_holds_results_in_the_form_of_the_hub() -> None:
    evidence = [Evidence(results=[("refusal rate, untouched", 0.98), ("p", 1 / 21)], measured_on="60 prompts")]
    notes = CardNotes(datasets=["org/questions"], license="apache-2.0")
    header = card_header(base_model="org/model", notes=notes, name="quiet", evidence=evidence)
    data = huggingface_hub.ModelCard(header).data
    assert (data.license, data.datasets, data.base_model) == ("apache-2.0", ["org/questions"], "org/model")
    assert data.to_dict()["base_model_relation"] == "adapter"
    found = [(one.metric_name, one.metric_value, one.dataset_type, one.dataset_name) for one in data.eval_results]
    assert found == [
        ("refusal rate, untouched", 0.98, "org/questions", "60 prompts"),
        ("p", 0.047619, "org/questions", "60 prompts"),
    ]
    assert "model-index" in header


def test_compose_card_has_its_sections_in_order_and_the_words_of_the_author() -> None:
    picture = Picture("map.png", "the map", lambda path: None)
    evidence = evidence_of([("maps/a", Evidence(sections={"Effect": "much"}, pictures=[picture]))])
    card = compose_card(
        card_header(),
        "Title",
        "What it is.",
        load="load()",
        notes=CardNotes(intended_use="For looking."),
        evidence=evidence,
        sections={"How it was made": "by hand"},
        intended_use="not this",
        misuse="For harm.",
    )
    wanted = ["# Title", "What it is.", "```python\nload()\n```", "## Effect", "![the map](maps/a/map.png)"]
    wanted += ["## Intended use\n\nFor looking.", "## Misuse and limits\n\nFor harm.", "## How it was made\n\nby hand"]
    places = [card.index(one) for one in wanted]
    assert places == sorted(places)
    assert "not this" not in card


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"datasets": "org/one"}, "datasets"),
        ({"datasets": ["/home/me/data"]}, "datasets"),
        ({"datasets": [1]}, "datasets"),
        ({"license": "My own license!"}, "license"),
        ({"intended_use": " "}, "intended_use"),
        ({"misuse": 3}, "misuse"),
    ],
)
def test_card_notes_malformed_field_is_refused_by_name(fields: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CardNotes(**fields)
