"""A tokenizer without a chat template: every command that asks prompts says so, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_runs import ran, said
from tiny_models import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from hf_mote import TopKSAEConfig, TopKSAEModel
from hf_mote.cli import app

NOTE = "… the tokenizer has no chat template: prompts are read as plain text"
FEW = ["--max-new-tokens", 2, "--dry-run"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A model whose tokenizer has no template, prompts, a template, an SAE, and a ranking with a config."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c d"}\n', encoding="utf-8")
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}", encoding="utf-8")
    TopKSAEModel(TopKSAEConfig(hidden_size=32, num_latents=8, k=2)).save_pretrained(folder / "sae")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    for saved in (tiny_model("mixtral"), tokenizer):
        saved.save_pretrained(folder / "model")
    named = {
        "MODEL": folder / "model",
        "PROMPTS": folder / "prompts.jsonl",
        "TEMPLATE": folder / "template.jinja",
        "SAE": folder / "sae",
        "RANKING": folder / "ranking",
    }
    words = ["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--suppress", 1]
    result = ran(*(named.get(str(word), word) for word in [*words, "--output", "RANKING"]))
    assert said(result).count(NOTE) == 1
    return {name: str(place) for name, place in named.items()}


COMMANDS = {
    "find": ["find", "MODEL", "PROMPTS", "--judge", "refusal", "--output", "out", *FEW],
    "ftri": ["ftri", "MODEL", "PROMPTS", "--judge", "refusal", "--output", "out", *FEW],
    "attribute": [
        "attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--output", "out", "--dry-run",
    ],
    "routes": ["routes", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--output", "out", "--dry-run"],
    "evaluate": ["evaluate", "MODEL", "RANKING", "PROMPTS", "--judge", "refusal", "--output", "out", *FEW],
    "sweep": ["sweep", "MODEL", "RANKING", "PROMPTS", "--judge", "refusal", "--output", "out", "--experts", 1, *FEW],
    "chat": ["chat", "MODEL"],
    "sae steer": [
        "sae", "steer", "MODEL", "SAE", "--prompt", "a b", "--edit", "1=+5", "--hookpoint", "model.layers.0", *FEW,
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_command_says_that_prompts_are_read_as_plain_text(
    command: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [places.get(str(word), str(word)) for word in COMMANDS[command]]
    result = CliRunner().invoke(app, words, input="/quit\n")
    assert result.exit_code == 0, result.output
    assert said(result).count(NOTE) == 1
    quiet = CliRunner().invoke(app, [*words, "--quiet"], input="/quit\n")
    assert (quiet.exit_code, NOTE in said(quiet)) == (0, False)
    if command != "sae steer":
        templated = CliRunner().invoke(app, [*words, "--chat-template", places["TEMPLATE"]], input="/quit\n")
        assert (templated.exit_code, NOTE in said(templated)) == (0, False), templated.output
