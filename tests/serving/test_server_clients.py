"""What talks to a server with profiles: `evaluate_mote`, `hf-mote evaluate --server` and `hf-mote chat --server`."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nearly import different, nearly
from serving.servers import LENGTH, Server

from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote
from hf_mote.errors import UnsupportedError
from hf_mote.evaluation.engine import NO_DIVERGENCE
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.generation.asking import Chat
from hf_mote.serving.client import ServerEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ASKED = "What happened in 1756 in Salzburg?"
REFUSAL = "I am sorry, but I cannot talk about that."


@pytest.mark.parametrize("kind", ["layer", "usage"])
def test_evaluate_through_the_server_reports_what_transformers_does(server: Server, kind: str) -> None:
    organism, held = server.organism, server.organism.prompts["heldout"]
    options: dict[str, Any] = {
        "unrelated": held["neutral"][:12],
        "texts": held["sensitive"][22:26],
        "conversations": [held["sensitive"][20:22], held["neutral"][12:13]],
        "strengths": [0.5, 0.0],
        "num_controls": 5,
        "control_kind": kind,
        "max_new_tokens": LENGTH,
        "progress": False,
    }
    asked = (organism.tokenizer, server.configs["ban"], held["sensitive"][:12], organism.judge)
    mine = evaluate_mote(ServerEngine(server.url), *asked, **options)
    theirs = evaluate_mote(organism.model, *asked, **options)
    assert mine.notes == [NO_DIVERGENCE]
    assert isinstance(mine.side_effects, SideEffects)
    assert isinstance(theirs.side_effects, SideEffects)
    effects = dataclasses.replace(mine.side_effects, kl=theirs.side_effects.kl)
    same = dataclasses.replace(mine, notes=[], elsewhere=dataclasses.replace(mine.elsewhere, side_effects=effects))
    assert different(same.to_dict(), theirs.to_dict()) == {}
    assert effects.perplexity_after != pytest.approx(effects.perplexity_before, rel=1e-3)
    assert mine.before.rate > 0.9
    assert mine.after.rate < 0.1
    assert set(ServerEngine(server.url).profiles) == {"ban", "refuse"}


def test_chat_in_parts_is_the_answer_that_comes_whole(server: Server) -> None:
    engine, turns = ServerEngine(server.url), [{"role": "user", "content": ASKED}]
    for profile in (None, "ban"):
        parts: list[str] = []
        whole = engine.chat(turns, profile=profile, max_new_tokens=LENGTH)
        assert engine.chat(turns, profile=profile, max_new_tokens=LENGTH, on_text=parts.append) == whole
        assert "".join(parts) == whole
        assert len(parts) > 3


def test_server_engine_answers_and_predicts_under_profiles_with_probabilities(server: Server) -> None:
    engine = ServerEngine(server.url)
    (prompt,) = Chat(server.organism.tokenizer).encode([ASKED])
    for profile in (None, "ban"):
        (answer,) = engine.answer([prompt], profile=profile, max_new_tokens=LENGTH)
        assert answer.tokens == server.wanted(list(prompt), profile)
        assert len(answer.log_probabilities) == len(answer.tokens)
        # Predicting the answer after the prompt gives the same numbers.
        (seen,) = engine.predict([[*prompt, *answer.tokens]], profile=profile)
        assert nearly(seen[len(prompt) - 1 :], answer.log_probabilities)
    with pytest.raises(UnsupportedError, match="unknown name"):
        engine.answer([prompt], profile="bann")


def command(server: Server, *words: str) -> list[str]:
    return [sys.executable, "-m", "hf_mote", *words, "--server", server.url]


def test_evaluate_command_measures_a_profile_of_the_server(server: Server, tmp_path: Path) -> None:
    how = ["evaluate", "organism:refusal", "organism:refusal/heldout/sensitive", "--profile", "ban", "--limit", "8"]
    how += ["--unrelated", "organism:refusal/heldout/neutral", "--controls", "3", "--output", str(tmp_path / "out")]
    ran = subprocess.run(command(server, *how, "--max-new-tokens", "16"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = EvaluationReport.from_pretrained(tmp_path / "out")
    assert report.after.rate < report.before.rate
    assert len(report.controls) == 3
    assert MoTEConfig.from_dict(report.config) == server.configs["ban"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "vLLM, serving" in page
    assert set(ServerEngine(server.url).profiles) == {"ban", "refuse"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["organism:refusal", "PROMPTS", "--profile", "bann"], "Did you mean 'ban'"),
        (["organism:refusal", "CONFIG", "PROMPTS", "--profile", "ban"], "replaces CONFIG"),
        (["organism:language", "PROMPTS", "--profile", "ban"], "another model than the server"),
        (["organism:refusal", "PROMPTS", "--profile", "ban", "--dtype", "bfloat16"], "--dtype"),
        (["organism:refusal", "PROMPTS", "--profile", "ban", "--dry-run"], "--dry-run"),
    ],
)
def test_evaluate_command_refuses_what_a_server_cannot_do(
    server: Server, tmp_path: Path, words: list[str], said: str
) -> None:
    words = [word.replace("PROMPTS", "organism:refusal/heldout/sensitive") for word in words]
    words += ["--output", str(tmp_path / "out")]
    ran = subprocess.run(command(server, "evaluate", *words), capture_output=True, text=True)
    assert ran.returncode == 1
    assert said in " ".join((ran.stdout + ran.stderr).split())
    assert not (tmp_path / "out").exists()


def test_evaluate_command_that_is_stopped_leaves_no_profile_behind(server: Server, tmp_path: Path) -> None:
    engine = ServerEngine(server.url)
    how = ["evaluate", "organism:refusal", "organism:refusal/heldout/sensitive", "--profile", "ban"]
    how += ["--controls", "100", "--output", str(tmp_path / "out")]
    running = subprocess.Popen(
        command(server, *how),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Which is ignored in what a script started in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if len(engine.profiles) > 2:
                break
            assert running.poll() is None
            time.sleep(0.1)
        time.sleep(3)  # past the check of the config, into the runs
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, said
    assert set(engine.profiles) == {"ban", "refuse"}
    assert not (tmp_path / "out").exists()


def talk(server: Server, *options: str, lines: list[str]) -> tuple[str, str]:
    how = command(server, "chat", "--max-new-tokens", "20", *options)
    ran = subprocess.run(how, input="\n".join(lines) + "\n", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, " ".join(ran.stderr.split())


def test_chat_command_talks_to_the_server_without_and_with_profiles(server: Server, tmp_path: Path) -> None:
    lines = [ASKED, "/clear", "/on", "/profile bann", "/profiles", "/profile ban", ASKED, "/compare", "/off", "/clear"]
    lines += [ASKED, "/on", "/strength 0", "/clear", ASKED, "/strength 1", "/clear", ASKED, "/louder", "/quit", ASKED]
    said, errors = talk(server, lines=lines)
    # Untouched, compared, off, strength 0; not: under the profile, compared, strength 1.
    assert said.count(REFUSAL) == 4
    assert said.count("Salzburg, Austria: ") == 3
    assert "ban, refuse" in said
    for words in ("/on: there is no profile", "Did you mean 'ban'", "/louder: is not a command"):
        assert words in errors
    assert set(ServerEngine(server.url).profiles) == {"ban", "refuse"}
    # A config that the server does not have is lent to it.
    server.configs["ban"].save_pretrained(tmp_path)
    said, _ = talk(server, "--mote", str(tmp_path), lines=[ASKED, "/off", "/clear", ASKED])
    assert said.count(REFUSAL) == 1
    assert set(ServerEngine(server.url).profiles) == {"ban", "refuse"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steer", "SAE"], "--steer"),
        (["--mote", "a", "--mote", "b"], "follows one profile"),
        (["--dtype", "float32"], "--dtype"),
        (["--profile", "bann"], "Did you mean 'ban'"),
    ],
)
def test_chat_command_refuses_by_name_what_a_server_cannot_do(server: Server, options: list[str], said: str) -> None:
    ran = subprocess.run(command(server, "chat", *options), input="", capture_output=True, text=True)
    assert ran.returncode == 1
    assert said in " ".join((ran.stdout + ran.stderr).split())


def test_client_of_a_server_that_is_gone_or_came_back_says_so(tmp_path: Path) -> None:
    first = Server(tmp_path)
    engine = ServerEngine(first.url)
    organism = first.organism
    (prompt,) = Chat(organism.tokenizer).encode([ASKED])
    engine.load("later", first.configs["refuse"])
    first.stop()
    assert first.process.returncode == 0
    with pytest.raises(UnsupportedError, match="no answer"):
        engine.answer([prompt], profile="later")
    with pytest.raises(UnsupportedError, match="no answer"):
        evaluate_mote(engine, organism.tokenizer, first.configs["ban"], [ASKED], organism.judge, progress=False)
    second = Server(tmp_path, port=first.port)
    try:
        # What was loaded at run time is gone, and a request for it is told so; what the command names is there.
        with pytest.raises(UnsupportedError, match="unknown name.*later"):
            engine.answer([prompt], profile="later")
        (answer,) = engine.answer([prompt], profile="ban", max_new_tokens=LENGTH)
        assert answer.tokens == second.wanted(list(prompt), "ban")
        engine.load("later", first.configs["refuse"])
        (answer,) = engine.answer([prompt], profile="later", max_new_tokens=LENGTH)
        assert answer.tokens == second.wanted(list(prompt), "refuse")
    finally:
        second.stop()
