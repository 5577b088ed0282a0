"""`ServerEngine.chat` with `on_text`: an answer in parts, from a server that sends what it likes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hf_mote.errors import UnsupportedError
from hf_mote.serving.client import ServerEngine

FINGERPRINT = {
    "layers": [1],
    "model_type": "mixtral",
    "num_experts": [8],
    "router_sha256": "0" * 64,
    "top_k": [2],
}
TOLD = {
    "/v1/mote/model": {"fingerprint": FINGERPRINT, "model": "m", "record": 0},
    "/v1/models": {"data": [{"id": "m"}]},
}
TURNS = [{"role": "user", "content": "Hello?"}]
Behave = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def engine() -> Iterator[tuple[ServerEngine, Callable[[Behave], None], list[Any]]]:
    """An engine, what sets how its server answers a chat, and the chats that were asked for."""
    asked: list[Any] = []
    behaviours: list[Behave] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(TOLD[self.path]).encode())

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            with contextlib.suppress(OSError):
                behaviours[-1](self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield ServerEngine(f"http://127.0.0.1:{server.server_port}", timeout=5.0), behaviours.append, asked
    server.shutdown()
    thread.join()
    server.server_close()


def event(delta: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}, ensure_ascii=False).encode() + b"\n\n"


def sending(*parts: bytes) -> Behave:
    def behave(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        for part in parts:
            request.wfile.write(part)
            request.wfile.flush()
            time.sleep(0.02)

    return behave


DONE = b"data: [DONE]\n\n"


def test_answer_comes_in_the_parts_that_the_server_sends(engine: Any) -> None:
    asking, behave, asked = engine
    whole = event({"role": "assistant", "content": ""}) + event({"content": "Grüß"}) + event({"content": " Gott"})
    # Cut in the midst of a letter of two bytes, and of an event.
    cut = whole.index("ü".encode()) + 1
    usage = b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
    behave(sending(b": a comment\n\n", whole[:cut], whole[cut:-9], whole[-9:], usage, DONE))
    parts: list[str] = []
    assert asking.chat(TURNS, profile="ban", on_text=parts.append) == "Grüß Gott"
    assert parts == ["Grüß", " Gott"]
    (body,) = asked
    assert (body["stream"], body["vllm_xargs"], body["messages"]) == (True, {"mote": "ban"}, TURNS)


def test_parts_come_before_the_answer_is_whole(engine: Any) -> None:
    asking, behave, _ = engine
    seen = threading.Event()
    late: list[bool] = []

    def wait_for_the_reader(request: BaseHTTPRequestHandler) -> None:
        sending(event({"content": "first"}))(request)
        late.append(seen.wait(4))
        request.wfile.write(event({"content": " second"}) + DONE)

    behave(wait_for_the_reader)
    assert asking.chat(TURNS, on_text=lambda _: seen.set()) == "first second"
    assert late == [True]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_is_shown_only_where_there_is_no_answer(engine: Any, key: str) -> None:
    asking, behave, _ = engine
    parts: list[str] = []
    behave(sending(event({key: "well,"}), event({key: " well"}), DONE))
    assert asking.chat(TURNS, on_text=parts.append) == "well, well"
    assert parts == ["well, well"]
    parts.clear()
    behave(sending(event({key: "well"}), event({"content": "Yes."}), DONE))
    assert asking.chat(TURNS, on_text=parts.append) == "Yes."
    assert parts == ["Yes."]


NO_TEXT = [3, 0, False, [], {}, ["a"], {"text": "a"}]
TWICE = b'{"choices": [{"message": {"content": "a"}, "message": {"content": "b"}}]}'


@pytest.mark.parametrize("key", ["content", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_content_that_is_no_text_is_refused(engine: Any, key: str, value: Any) -> None:
    asking, behave, _ = engine
    behave(sending(event({key: value}), DONE))
    with pytest.raises(UnsupportedError, match=f"{key} of its reply must be text"):
        asking.chat(TURNS, on_text=lambda _: None)
    behave(sending(json.dumps({"choices": [{"message": {key: value}}]}).encode()))
    with pytest.raises(UnsupportedError, match=f"{key} of its reply must be text"):
        asking.chat(TURNS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TWICE, "holds a key twice"),
        (b'{"choices": [{"message": {"content": "a"}, "logprob": NaN}]}', "must be a finite number"),
        (b'{"choices": [{"message": {"content": "a\\ud800b"}}]}', "text that is not Unicode"),
        (b'{"choices": [{"message": {"content": "a"}}], "more": ' + b"[" * 40 + b"]" * 40 + b"}", "too deeply"),
        (b"[1]", "must hold a JSON object .got list"),
        (b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}', "several answers"),
    ],
)
def test_reply_is_read_as_strictly_as_a_file(engine: Any, content: bytes, said: str) -> None:
    asking, behave, _ = engine
    behave(sending(content))
    with pytest.raises(UnsupportedError, match=rf"^http://127\.0\.0\.1:\d+: .*{said}"):
        asking.chat(TURNS)
    behave(sending(b"data: " + content.replace(b"message", b"delta") + b"\n\n", DONE))
    with pytest.raises(UnsupportedError, match=rf"^http://127\.0\.0\.1:\d+: .*{said}"):
        asking.chat(TURNS, on_text=lambda _: None)


@pytest.mark.parametrize(
    "usage", [b'{"choices": [], "usage": {}}', b'{"usage": {"total_tokens": 3}}', b'{"choices": []}']
)
def test_events_without_a_part_are_those_of_the_protocol(engine: Any, usage: bytes) -> None:
    asking, behave, _ = engine
    behave(sending(event({"content": "a"}), b"data: " + usage + b"\n\n", DONE))
    assert asking.chat(TURNS, on_text=lambda _: None) == "a"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([event({"content": "half"})], "before it was whole"),
        ([], "before it was whole"),
        ([b'data: {"error": {"message": "the engine died", "code": 500}}\n\n', DONE], "the engine died"),
        ([b'data: {"error": 3}\n\n'], "ended the answer with an error"),
        ([b"data: [1]\n\n"], "must hold a JSON object"),
        ([b"data: {}\n\n"], "the reply is not a completion"),
        ([b'data: {"choices": null}\n\n'], "the reply is not a completion"),
        ([b'data: {"usage": 3}\n\n'], "the reply is not a completion"),
        ([b'data: {"choices": [{"index": 1, "delta": {"content": "b"}}]}\n\n'], "several answers"),
        ([b'data: {"error": {"message": ["a"]}}\n\n'], "ended the answer with an error"),
        ([b'data: {"choices": [3]}\n\n'], "its reply has no choice"),
        ([b'data: {"choices": [{}]}\n\n'], "its reply has no delta"),
        ([b'data: {"choices": {"a": 1}}\n\n'], "the reply is not a completion"),
        ([b"data: {nonsense\n\n"], "its reply cannot be read .got reply: line 1, column 2: must be valid JSON"),
        ([b"data: \xff\n\n"], "its reply cannot be read"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "its reply cannot be read"),
    ],
)
def test_replies_that_are_no_answer_are_refused(engine: Any, content: list[bytes], said: str) -> None:
    asking, behave, _ = engine
    behave(sending(*content))
    with pytest.raises(UnsupportedError, match=said):
        asking.chat(TURNS, on_text=lambda _: None)


def test_answer_without_end_is_cut_off(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asking, behave, _ = engine
    monkeypatch.setattr("hf_mote.serving.client._MOST_BYTES_OF_EVENTS", 2**20)
    behave(sending(*[b"x" * 2**16] * 100))
    with pytest.raises(UnsupportedError, match="a reply of more than 1048576 bytes"):
        asking.chat(TURNS, on_text=lambda _: None)


def test_server_that_drips_meets_the_timeout(engine: Any) -> None:
    asking, behave, _ = engine
    asking._timeout = 0.5
    behave(sending(*[event({"content": "a"})] * 400))
    begun = time.monotonic()
    with pytest.raises(UnsupportedError, match=r"no whole reply within 0\.5 s"):
        asking.chat(TURNS, on_text=lambda _: None)
    assert time.monotonic() - begun < 3


def test_unknown_profile_is_the_error_that_the_server_tells(engine: Any) -> None:
    asking, behave, _ = engine

    def refuse(request: BaseHTTPRequestHandler) -> None:
        request.send_response(400)
        request.end_headers()
        request.wfile.write(b'{"error": {"message": "no profile ban"}}')

    behave(refuse)
    with pytest.raises(UnsupportedError, match=r"no profile ban .got status 400"):
        asking.chat(TURNS, on_text=lambda _: None)
