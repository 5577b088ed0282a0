"""Errors on the command line name what was typed."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from hf_mote.cli import app
from hf_mote.commands.typed import as_typed, running
from hf_mote.errors import ConfigError

TYPED = {
    "ftri": ["m", "p"],
    "attribute": ["m", "p"],
    "routes": ["m", "p"],
    "evaluate": ["m", "c", "p"],
    "train": ["m", "t", "--output", "o"],
    "adapt": ["m", "s", "t", "--output", "o"],
    "top-tokens": ["m", "s", "t", "--latent", "1"],
    "experts": ["m", "s"],
    "steer": ["m", "s", "--prompt", "a", "--edit", "1=+5"],
}


def context_of(name: str) -> Any:
    group: Any = get_command(app)
    command = group.commands[name] if name in group.commands else group.commands["sae"].commands[name]
    return command.make_context(name, list(TYPED[name]))


@pytest.mark.parametrize(
    ("command", "where", "told"),
    [
        ("ftri", "ftri.repeats", "--repeats"),
        ("ftri", "RegexJudge.patterns['a']", "--judge regex.patterns['a']"),
        ("ftri", "MoTEConfig.suppress[3]", "--suppress[3]"),
        ("evaluate", "MoTEConfig.suppress[3]", "MoTEConfig.suppress[3]"),
        ("evaluate", "MoTEConfig.strength", "--strengths"),
        ("evaluate", "evaluate_mote.num_controls", "--controls"),
        ("evaluate", "SAEReport.tokens", "SAEReport.tokens"),
        ("ftri", "chat_template_kwargs['x']", "--template-arg x"),
        ("attribute", "OptimizedRanking.complete.run_folder", "--run-folder"),
        ("routes", "counterfactual_routes.layers", "--layers"),
        ("routes", "counterfactual_routes.position", "--position"),
        ("routes", "counterfactual_routes.run_folder", "--run-folder"),
        ("routes", "prompts[1]", "prompts[1]"),
        ("train", "sae train.run_folder", "--run-folder"),
        ("train", "TopKSAEConfig.k", "--k"),
        ("train", "TopKSAEConfig.num_latents", "--latents"),
        ("train", "JumpReLUSAEConfig.bandwidth", "--option bandwidth"),
        ("adapt", "adapt_to_sae.batch_size", "--batch"),
        ("adapt", "hookpoints", "--hookpoint"),
        ("top-tokens", "latents", "--latent"),
        ("top-tokens", "TopKSAEModel.config.hookpoint", "TopKSAEModel.config.hookpoint"),
        ("experts", "link_latents.latents", "--latent"),
        ("experts", "link_latents.dataset", "TEXT"),
        ("top-tokens", "top_activations: dataset", "TEXT"),
        ("train", "dataset, row 3", "TEXT, row 3"),
        ("train", "datasets", "datasets"),
        ("steer", "steer.prompts", "--prompt"),
        ("steer", "prompts[0]", "--prompt"),
        ("ftri", "prompts[0]", "prompts[0]"),
        ("steer", "SteeringConfig.edits[99]", "--edit"),
        ("steer", "steer.hookpoint", "--hookpoint"),
    ],
)
def test_error_of_a_command_names_its_option(command: str, where: str, told: str) -> None:
    with running(context_of(command)):
        assert as_typed(ConfigError(where, "is wrong", got=3)) == f"{told}: is wrong (got 3)."


def test_prompt_is_named_by_the_option_only_where_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TYPED, "routes", ["m", "--prompt", "a", "--prompt", "b"])
    with running(context_of("routes")):
        assert as_typed(ConfigError("prompts[1]", "is wrong")) == "--prompt: is wrong."


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        ("train", "Name the column by text_column.", "Name the column by --text-column."),
        ("steer", "Name the column by text_column.", "Name the column by text_column."),
        (
            "ftri",
            "Look at tokenizer.chat_template.",
            "Look at the tokenizer's, or at the file of --chat-template.",
        ),
        (
            "top-tokens",
            "Set config.hookpoint, such as 'model.layers.10.output'.",
            "Give --hookpoint, such as model.layers.10.output.",
        ),
    ],
)
def test_way_out_of_a_command_is_its_option(command: str, theirs: str, ours: str) -> None:
    with running(context_of(command)):
        assert as_typed(ConfigError("a", "is wrong", fix=theirs)) == f"a: is wrong. {ours}"


def test_error_outside_a_command_is_as_it_was() -> None:
    assert as_typed(ConfigError("ftri.repeats", "is wrong")) == "ftri.repeats: is wrong."
