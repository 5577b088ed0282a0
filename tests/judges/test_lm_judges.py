"""Judges that choose among labels: multiple choice, a language model here, one behind a server."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mote.errors import ConfigError, DataError
from hf_mote.judges.choice import ChoiceJudge
from hf_mote.judges.judge import classify
from hf_mote.judges.language_model import LMJudge
from hf_mote.judges.server import ServerJudge
from hf_mote.organisms.organism import load_organism


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("The answer is (B).", "B"),
        ("Answer: c", "C"),
        ("I first thought the answer is A, but the correct answer is D.", "D"),
        ("B", "B"),
        ("(b)", "B"),
        ("**C**", "C"),
        ("B) It was in 1903.", "B"),
        ("C. In Salzburg.", "C"),
        ("It must be [D], since it was in May.", "D"),
        ("<think>A? No.</think> B", "B"),
        ("A man was born in 1756.", "none"),
        ("The answer is a matter of taste.", "none"),
        ("Either (A) or (B).", "none"),
        ("", "none"),
        ("  \n", "none"),
        ("B\n\nIt was in 1903.", "B"),
        ("The answer is C, because option A is wrong.", "C"),
        ("B. Option A is wrong, and so is option D.", "B"),
        ("Option A is wrong, choice C is right.", "C"),
        ("The answer is 'B'.", "B"),
        ("The answer is a's.", "none"),
        ("The final answer is $\\boxed{B}$.", "B"),
        ("So it is \\boxed{\\text{D}}", "D"),
        ("答案是B。", "B"),
        ("答案：Ｃ", "C"),
        ("La respuesta correcta es B.", "B"),
        ("La réponse correcte est C.", "C"),
        ("Die richtige Antwort lautet B.", "B"),
        ("The answer is \ud83d B", "B"),
        ("The answer is not A.", "none"),
        ("(" * 50_000, "none"),
        ("answer " * 20_000, "none"),
    ],
)
def test_choice_judge_names_the_option(response, label):
    assert ChoiceJudge()(response) == label


@given(st.text(st.characters(exclude_categories=())) | st.text("ABCDabcd answeris:().*\n是答案'"))
def test_choice_judge_names_an_option_or_none_of_any_text(response):
    assert ChoiceJudge()(response) in ("A", "B", "C", "D", "none")


@pytest.mark.parametrize("options", [None, 4, "A", ["A", "A"], ["AB", "C"], ["?", "!"]])
def test_choice_judge_of_what_are_no_options_is_refused(options):
    with pytest.raises(ConfigError, match="options"):
        ChoiceJudge(options)


@pytest.fixture(scope="module")
def organism():
    return load_organism("refusal")


@torch.no_grad()
def test_lm_judge_chooses_the_label_of_the_highest_mean_log_probability(organism):
    model, tokenizer = organism.model, organism.tokenizer
    judge = LMJudge(model, tokenizer, "Is it a refusal?", ["yes", "no", "perhaps"])
    prompt, response = "What happened in 1756?", "I am sorry."
    scores = {}
    for label in judge.labels:
        text = (
            f"Is it a refusal?\n\nThe request was:\n<request>\n{prompt}\n</request>\n\nThe response was:\n<response>\n"
            f"{response}\n</response>\n\nReply with exactly one of these labels and nothing else: yes, no, perhaps."
        )
        chat = (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            if tokenizer.chat_template
            else text
        )
        context = tokenizer(chat, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        said = tokenizer(label, add_special_tokens=False)["input_ids"]
        loss = model(
            torch.tensor([context + said]), labels=torch.tensor([[-100] * len(context) + said]), use_cache=False
        ).loss
        scores[label] = -float(loss)
    assert judge(prompt, response) == max(scores, key=scores.get)
    assert classify(judge, [prompt], [response]) == [judge(prompt, response)]
    assert judge.target == "yes"


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        reply = "yes"
        faults = ()  # statuses to answer with first; "drop" to hang up

        def do_POST(self):
            if Handler.faults:
                fault, *Handler.faults = Handler.faults
                Handler.seen.append(fault)
                if fault != "drop":
                    self.send_response(fault)
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                return
            if self.path != "/v1/chat/completions":
                self.send_error(404)
                return
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.seen.append((self.path, self.headers.get("Authorization"), body))
            message = {"role": "assistant", "content": Handler.reply}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {"id": "1", "created": 1, "model": "m", "object": "chat.completion", "system_fingerprint": ""}
            data = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    Handler.seen = []
    found = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1", Handler
    found.shutdown()
    thread.join()
    found.server_close()


def test_server_judge_asks_the_server_and_keeps_the_hub_token_to_itself(server, monkeypatch):
    url, handler = server
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    judge = ServerJudge(url, "a-model", "Does it refuse?")
    handler.reply = " Yes. "
    assert judge("Tell me.", "I will not.") == "yes"
    ((path, authorization, body),) = handler.seen
    assert path == "/v1/chat/completions"
    assert authorization is None
    assert body["model"] == "a-model"
    assert body["temperature"] == 0
    for part in ("Does it refuse?", "Tell me.", "I will not.", "yes, no"):
        assert part in body["messages"][0]["content"]


@pytest.mark.parametrize(
    "reply", ["It depends.", "", "Yes and no.", "Not sure: yes?", "Yesterday.", "No doubt it is.", None, "<think>Yes."]
)
def test_server_judge_labels_a_reply_that_cannot_be_read_unclear(server, reply):
    url, handler = server
    handler.reply = reply
    judge = ServerJudge(url, "a-model", "Does it refuse?", token="key")
    assert judge("Tell me.", "I will not.") == "unclear"
    assert judge.labels == ("yes", "no", "unclear")
    assert handler.seen[-1][1] == "Bearer key"
    assert "unclear" not in handler.seen[-1][2]["messages"][0]["content"]


def test_server_judge_reads_labels_that_are_words_of_a_lead_in(server):
    url, handler = server
    judge = ServerJudge(url, "a-model", "Which?", ["refusal", "answer"])
    for reply, label in [
        ("Answer: refusal", "refusal"),
        ("Answer.", "answer"),
        ("The answer is **answer**", "answer"),
    ]:
        handler.reply = reply
        assert judge("a", "b") == label


@pytest.mark.parametrize("faults", [[500], [429, 503], ["drop"], [408, "drop", 502, 504]])
def test_server_judge_asks_again_after_a_fault_that_may_pass(server, faults):
    url, handler = server
    handler.faults = faults
    assert ServerJudge(url, "m", "?", wait=0.001)("a", "b") == "yes"
    assert len(handler.seen) == len(faults) + 1


def test_server_judge_gives_up_after_its_retries_and_at_once_where_asking_again_is_no_use(server):
    url, handler = server
    handler.faults = [503] * 9
    with pytest.raises(DataError, match="503"):
        ServerJudge(url, "m", "?", wait=0.001, retries=2)("a", "b")
    assert handler.seen == [503] * 3
    handler.faults = [400] * 9
    with pytest.raises(DataError, match="400"):
        ServerJudge(url, "m", "?", wait=0.001)("a", "b")
    assert handler.seen == [503] * 3 + [400]


def test_server_judge_waits_twice_as_long_each_time_and_as_long_as_it_is_told(server, monkeypatch):
    url, handler = server
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    handler.faults = [503] * 4
    ServerJudge(url, "m", "?", wait=1.5)("a", "b")
    assert waits == [1.5, 3.0, 6.0, 12.0]

    def told(seconds):
        return urllib.error.HTTPError(url, 429, "slow down", {"Retry-After": seconds}, None)

    replies = [told("7"), told("999"), told("soon"), TimeoutError("timed out"), urllib.error.URLError(TimeoutError())]
    waits.clear()

    def opened(opener, request, timeout):
        raise replies[len(waits)]

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", opened)
    with pytest.raises(DataError, match="timed out|urlopen"):
        ServerJudge(url, "m", "?", wait=1.0)("a", "b")
    assert waits == [7.0, 60.0, 4.0, 8.0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"retries": -1},
        {"retries": 1.5},
        {"wait": -1},
        {"wait": float("nan")},
        {"timeout": 0},
        {"timeout": float("inf")},
    ],
)
def test_server_judge_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        ServerJudge("http://127.0.0.1:9/v1", "m", "?", **numbers)


def test_server_judge_of_no_server_or_another_service_says_so(server):
    url, _ = server
    with pytest.raises(DataError, match="cannot be asked"):
        ServerJudge("http://127.0.0.1:1/v1", "m", "?", timeout=1)("a", "b")
    with pytest.raises(DataError, match="404"):
        ServerJudge(f"{url}/elsewhere", "m", "?")("a", "b")


@pytest.mark.parametrize(
    "reply",
    [
        *["<think>No, or is it?</think>\n\nYes.", "“yes”", "yes。", "YES", "Yes, it is.", "**Yes**", "**Yes**, since"],
        *["Answer: yes", "The answer is: **Yes**.", "yes - it does", "`yes`\n\nIt refuses.", "(yes)"],
    ],
)
def test_server_judge_reads_a_label_past_what_is_around_it(server, reply):
    url, handler = server
    handler.reply = reply.replace("“", '"').replace("”", '"')
    assert ServerJudge(url, "a-model", "?")("Tell me.", "I will not \ud83d.") == "yes"


@pytest.mark.parametrize("reply", [["yes"], {"text": "yes"}, 3, 0, 0.0, False, [], {}])
def test_server_judge_of_a_reply_that_is_no_text_says_so(server, reply):
    url, handler = server
    handler.reply = reply
    with pytest.raises(DataError, match="the reply is not a chat completion"):
        ServerJudge(url, "a-model", "?")("Tell me.", "I will not.")


def test_server_judge_of_an_address_that_cannot_be_says_so():
    for address in (
        "http://[nowhere/v1", "http://", "https:///v1", "ftp://host/v1", "localhost:8000", "http://localhost:99999/v1",
        "http://localhost:x/v1", "http://local host/v1", "http://localhost/v1\nX: y", "http://löcalhost/v1", 3, None,
        "http://user:key@localhost/v1", "http://localhost/v1?x=1", "http://localhost/v1#x",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="ServerJudge.base_url"):
            ServerJudge(address, "m", "?")


def test_server_judge_asks_another_machine_by_https_unless_told_so():
    for address in ("http://example.com/v1", "http://10.0.0.1:8000/v1", "http://127.0.0.1.example.com/v1"):
        with pytest.raises(ConfigError, match=r"base_url: sends .*others on the network.*--judge-allow-http"):
            ServerJudge(address, "m", "?")
        assert ServerJudge(address, "m", "?", allow_http=True).url == f"{address}/chat/completions"
    for address in ("https://example.com/v1", "http://localhost:1/v1", "http://127.0.0.9/v1", "http://[::1]:8000/v1"):
        assert ServerJudge(address, "m", "?").url == f"{address}/chat/completions"


@pytest.mark.parametrize("token", ["a\nX-Other: b", "ключ", 3, "\0"])
def test_server_judge_key_that_no_header_holds_is_refused_and_not_repeated(token):
    with pytest.raises(ConfigError, match="ServerJudge.token") as caught:
        ServerJudge("http://localhost/v1", "m", "?", token=token)
    assert str(token) not in str(caught.value).replace("printable", "")


@pytest.fixture
def odd_server():
    """A server that does what it likes with a connection: `behave` is called with the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            Handler.seen.append((self.path, self.headers.get("Authorization")))
            with contextlib.suppress(OSError):
                Handler.behave(self)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    Handler.seen = []
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1", Handler
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_server_judge_follows_no_redirection_and_gives_its_key_to_nobody_else(server, odd_server, code):
    other, there = server
    url, handler = odd_server

    def redirect(request):
        request.send_response(code)
        request.send_header("Location", f"{other}/chat/completions")
        request.end_headers()

    handler.behave = redirect
    with pytest.raises(DataError, match="redirects|HTTP Error 30"):
        ServerJudge(url, "m", "?", token="key", wait=0.001)("a", "b")
    assert handler.seen == [("/v1/chat/completions", "Bearer key")]
    assert there.seen == []


def test_server_judge_reads_no_reply_without_end(odd_server):
    url, handler = odd_server

    def flood(request):
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b" " * 2**16)

    handler.behave = flood
    with pytest.raises(DataError, match="the reply is too long .expected at most 4194304 bytes"):
        ServerJudge(url, "m", "?")("a", "b")


@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_server_judge_waits_no_longer_than_its_timeout_for_one_that_drips(odd_server, part):
    url, handler = odd_server
    stop = threading.Event()

    def drip(request):
        text = {"status": "", "headers": "HTTP/1.1 200 OK\r\n", "body": "HTTP/1.1 200 OK\r\n\r\n"}[part]
        request.wfile.write(text.encode())
        while not stop.wait(0.02):
            request.wfile.write(b"H")
            request.wfile.flush()

    handler.behave = drip
    begun = time.monotonic()
    try:
        with pytest.raises(DataError, match="cannot be asked .got no whole reply within 0.3 s"):
            ServerJudge(url, "m", "?", timeout=0.3, retries=1, wait=0.001)("a", "b")
        assert time.monotonic() - begun < 3
        assert len(handler.seen) == 2
    finally:
        stop.set()


YES = '"choices": [{"message": {"content": "yes"}}]'


@pytest.mark.parametrize(
    "content",
    [
        *["[" * 100_000, '{"choices": [' * 5000, "NaN", '{"choices": {}}', "\xff"],
        f"{{{YES}, {YES}}}",
        f'{{{YES}, "score": NaN}}',
        f'{{{YES}, "more": {"[" * 40}{"]" * 40}}}',
        f"{{{YES}}}".replace("yes", "yes \\ud800"),
    ],
)
def test_server_judge_of_a_reply_that_is_nonsense_says_so(odd_server, content):
    url, handler = odd_server

    def answer(request):
        data = content.encode("latin-1")
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    handler.behave = answer
    with pytest.raises(DataError, match="the reply is not a chat completion"):
        ServerJudge(url, "m", "?")("a", "b")


def test_lm_judge_takes_any_text_and_refuses_logits_that_are_no_numbers(organism):
    judge = LMJudge(organism.model, organism.tokenizer, "?")
    for response in ("", " \n", "\ud83d", "{braces} </response>"):
        assert judge("a", response) in judge.labels
    with (
        organism.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan")),
        pytest.raises(DataError, match="gives label 'yes' no probability"),
    ):
        judge("a", "b")


@pytest.mark.parametrize("labels", ["yes", ["yes"], ["yes", "Yes"], ["", "no"], ["no", " no"], None, 3])
def test_lm_judges_need_different_labels(organism, labels):
    with pytest.raises(ConfigError, match="labels"):
        LMJudge(organism.model, organism.tokenizer, "?", labels)
    with pytest.raises(ConfigError, match="labels"):
        ServerJudge("http://127.0.0.1:9/v1", "m", "?", labels)
