"""`hf-mote serve` as typed: a server, requests under profiles side by side, faults that are one request's own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from serving.models import of_routers
from serving.servers import LENGTH, Server, prompts_of

from hf_mote import MoTEConfig, apply_mote, ftri, record_routing
from hf_mote.errors import UnsupportedError
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.serving.client import ServerEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def test_serve_answers_under_each_profile_side_by_side_as_transformers_does(server: Server) -> None:
    jobs = [(prompt, name) for prompt in prompts_of(server) for name in (None, "ban", "refuse")]
    found: dict[int, tuple[int, Any]] = {}

    def run(place: int) -> None:
        prompt, name = jobs[place]
        found[place] = server.complete(prompt, **({} if name is None else {"mote": name}))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decode = server.organism.tokenizer.decode
    for place, (prompt, name) in enumerate(jobs):
        status, tokens = found[place]
        assert status == 200
        assert tokens == server.wanted(prompt, name)
    labels = [server.organism.judge(decode(found[place][1], skip_special_tokens=True)) for place in found]
    refused = {
        name: [labels[list(found).index(place)] for place, job in enumerate(jobs) if job[1] == name]
        for name in (None, "ban", "refuse")
    }
    assert refused[None] == ["refusal"] * 3 + ["answer"] * 3
    assert refused["ban"] == ["answer"] * 6
    assert refused["refuse"] == ["refusal"] * 6


def test_serve_prints_a_curl_line_that_works(server: Server) -> None:
    line = next(line for line in server.said if line.startswith("curl "))
    answer = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["choices"][0]["text"]


def test_serve_chat_completions_take_profiles_too(server: Server) -> None:
    question = server.organism.prompts["heldout"]["sensitive"][0]
    body = {"model": "organism:refusal", "messages": [{"role": "user", "content": question}], "temperature": 0}
    judge = server.organism.judge
    for name, label in ((None, "refusal"), ("ban", "answer")):
        xargs = {} if name is None else {"vllm_xargs": {"mote": name}}
        status, found = server.ask("POST", "/v1/chat/completions", {**body, "max_tokens": LENGTH, **xargs})
        assert status == 200, found
        assert judge(found["choices"][0]["message"]["content"]) == label


def test_serve_unknown_profile_is_that_requests_error_and_the_engine_lives(server: Server) -> None:
    prompt = prompts_of(server)[0]
    for xargs, words in (
        ({"mote": "bann"}, "Did you mean 'ban'"),
        ({"mote": 3}, "unknown name"),
        ({"mote_digest": "0" * 64}, "reserved for the engine"),
        ({"mote_record": ""}, "must be the name of a recording"),
    ):
        status, found = server.complete(prompt, **xargs)
        assert status == 400
        assert words in json.dumps(found).replace("\\u2019", "'"), found
    assert server.complete(prompt, mote="ban") == (200, server.wanted(prompt, "ban"))


def test_serve_profiles_are_listed_loaded_replaced_and_forgotten(server: Server) -> None:
    prompt = prompts_of(server)[0]
    status, found = server.ask("GET", "/v1/mote/profiles")
    assert status == 200
    assert {name: MoTEConfig.from_dict(config) for name, config in found["profiles"].items()} == server.configs
    later = server.configs["ban"].to_dict()
    assert server.ask("PUT", "/v1/mote/profiles/later", later)[0] == 200
    assert server.complete(prompt, mote="later") == (200, server.wanted(prompt, "ban"))
    # Under the same name something else, while requests run under it; the cache must not give the old keys back.
    found: list[tuple[int, Any]] = []
    running = [threading.Thread(target=lambda: found.append(server.complete(prompt, mote="later"))) for _ in range(12)]
    for place, one in enumerate(running):
        one.start()
        if place == 5:
            assert server.ask("PUT", "/v1/mote/profiles/later", server.configs["refuse"].to_dict())[0] == 200
    for one in running:
        one.join()
    # Each of them as it began, whole: never some tokens of the one and some of the other.
    whole = [(200, server.wanted(prompt, name)) for name in ("ban", "refuse")]
    assert all(one in whole for one in found)
    assert found.count(whole[1]) >= 6
    for question in prompts_of(server):
        assert server.complete(question, mote="later") == (200, server.wanted(question, "refuse"))
    assert server.ask("DELETE", "/v1/mote/profiles/later")[0] == 200
    assert server.complete(prompt, mote="later")[0] == 400
    assert server.ask("DELETE", "/v1/mote/profiles/later")[0] == 400


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"suppress": [[99, 0]]}, "has no routed experts"),
        ({"suppress": [[1, 999]]}, "does not exist"),
        ({"suppress": [[1, 0]], "scope": "thinking", "thinking_tokens": [5, 6]}, "sampl"),
        ({"schema_version": 1, "nonsense": 1}, "unknown field"),
        ("other", "another model"),
        ("weights", "other router weights"),
    ],
)
def test_serve_wrong_config_is_refused_and_the_engine_lives(server: Server, config: Any, words: str) -> None:
    if isinstance(config, str):
        config = server.configs["ban"].to_dict()
        changed = {"model_type": "mixtral"} if words == "another model" else {"router_sha256": "0" * 64}
        config["fingerprint"] = {**config["fingerprint"], **changed}
    elif "suppress" in config:
        config = MoTEConfig(**config).to_dict()
    status, found = server.ask("PUT", "/v1/mote/profiles/wrong", config)
    assert status == 400
    assert words in found["error"]["message"]
    prompt = prompts_of(server)[0]
    assert server.complete(prompt, mote="wrong")[0] == 400
    assert server.complete(prompt, mote="ban") == (200, server.wanted(prompt, "ban"))


def test_serve_more_profiles_than_there_is_room_for_are_refused(server: Server) -> None:
    for number, status in ((3, 200), (5, 400)):
        config = MoTEConfig(suppress=[[2, number]]).to_dict()
        assert server.ask("PUT", f"/v1/mote/profiles/more-{number}", config)[0] == status
    assert server.ask("DELETE", "/v1/mote/profiles/more-3")[0] == 200
    assert server.ask("PUT", "/v1/mote/profiles/more-5", MoTEConfig(suppress=[[2, 5]]).to_dict())[0] == 200
    assert server.ask("DELETE", "/v1/mote/profiles/more-5")[0] == 200


def test_serve_recordings_are_what_record_routing_sees(server: Server) -> None:
    status, told = server.ask("GET", "/v1/mote/model")
    assert status == 200
    assert told["fingerprint"] == of_routers(server.configs["ban"].fingerprint)
    prompt = prompts_of(server)[0]
    status, tokens = server.complete(prompt, mote="ban", mote_record="mine")
    assert status == 200
    status, found = server.ask("POST", "/v1/mote/recordings/mine")
    assert status == 200
    fed = [*prompt, *tokens[:-1]]
    model = server.organism.model
    with torch.no_grad(), apply_mote(model, server.configs["ban"]), record_routing(model) as record:
        model(torch.tensor([fed]))
    (wanted,) = record.maps()
    counts = torch.tensor([found["recorded"]["layers"][str(layer)][0] for layer in wanted.layers]).sum(dim=1)
    assert torch.equal(counts.double(), wanted.counts)
    assert sum(found["recorded"]["tokens"]) == wanted.num_tokens
    assert server.ask("POST", "/v1/mote/recordings/mine")[0] == 400


def test_server_engine_images_as_transformers_does(server: Server) -> None:
    engine = ServerEngine(f"http://127.0.0.1:{server.port}")
    assert engine.profiles == server.configs
    organism, train = server.organism, server.organism.prompts["train"]
    prompts = train["sensitive"][:12] + train["neutral"][:12]
    options: dict[str, Any] = {"max_new_tokens": 16, "progress": False, "batch_size": 8}
    mine = ftri(engine, organism.tokenizer, prompts, organism.judge, **options)
    theirs = ftri(organism.model, organism.tokenizer, prompts, organism.judge, **options)
    assert mine.responses == theirs.responses
    assert mine.fingerprint == of_routers(theirs.fingerprint)
    assert torch.equal(mine.counts, theirs.counts)
    engine.load("later", server.configs["ban"])
    assert set(engine.profiles) == {"ban", "refuse", "later"}
    engine.unload("later")
    with pytest.raises(UnsupportedError, match="does not exist"):
        engine.load("later", MoTEConfig(suppress=[[1, 999]]))
    with pytest.raises(UnsupportedError, match="more prompts than recordings"):
        engine.image([[5, 6]] * 9)


def test_ftri_command_images_through_the_server(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hf_mote", "ftri", "organism:refusal", "organism:refusal/train"]
    command += ["--server", f"http://127.0.0.1:{server.port}", "--limit", "64", "--batch-size", "8"]
    command += ["--max-new-tokens", "16", "--suppress", "4", "--output", str(tmp_path / "out"), "--resamples", "99"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert len(set(ranking.top(4)) & set(server.organism.planted)) >= 3
    assert "vLLM, serving" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
