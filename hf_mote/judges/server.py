"""`ServerJudge`: a label by a chat model behind a server with OpenAI's chat protocol."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import time
import urllib.error
from collections.abc import Sequence
from urllib.parse import urlsplit

from hf_mote.errors import ConfigError, DataError, FileFormatError, real, whole
from hf_mote.files import parse_json_object
from hf_mote.judges.language_model import _ask, _checked
from hf_mote.web import ReplyTooLong, ask

__all__ = ["ServerJudge"]

LONGEST_WAIT = 60.0  # seconds between two attempts
MOST_BYTES = 2**22  # of a reply: a label, and the thinking of a reasoning model before it
_LONGEST_TIMEOUT = 86_400.0
_LEAD = r"[\W_]*(?:(?:my|the) )?(?:final )?(?:answer|label|verdict)\b(?: is\b)?"


class ServerJudge:
    """Labels a response by what a chat model behind a server replies.

    Args:
        base_url (`str`): Where the server is: "http://localhost:8000/v1". It must offer OpenAI's chat completions. A
            redirection is an error: prompts, responses and the key go to no other address than this one.
        model (`str`): The model's name on the server.
        question (`str`): What is asked about the response.
        labels (`Sequence[str]`, *optional*, defaults to `("yes", "no")`): Two or more; the first is of interest.
        token (`str`, *optional*): The server's key, if it needs one.
        timeout (`float`, *optional*, defaults to 60.0): Seconds until a reply, of up to 4 MiB, must be there whole.
        retries (`int`, *optional*, defaults to 4):
            How often a request is made again after a time-out, a connection that broke off, or status 408, 429 or
            500 and above. Any other failure, and the last of these, ends the run.
        wait (`float`, *optional*, defaults to 1.0):
            Seconds before the first retry; doubled each time, or the server's `Retry-After` if that is more, and 60
            at most.
        allow_http (`bool`, *optional*, defaults to `False`):
            Whether an address of another machine may begin with "http://", where others on the network can read
            prompts, responses and the key.

    Attributes:
        target (`str`): The first label.
        labels (`tuple[str, ...]`): Yours and "unclear".
        unclear (`str`):
            "unclear", for a reply that is not a label and does not begin with one before a punctuation mark.
            `EvaluationReport.unclear` counts them.
        costly (`bool`): True: a run folder keeps its labels.

    Raises:
        [`ConfigError`]: if there is no question, fewer than two different labels, or a number is out of range.
    """

    unclear = "unclear"
    costly = True

    def __init__(
        self,
        base_url: str,
        model: str,
        question: str,
        labels: Sequence[str] = ("yes", "no"),
        *,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        wait: float = 1.0,
        allow_http: bool = False,
    ) -> None:
        self._asked = _checked("ServerJudge", question, labels)
        self.labels = (*dict.fromkeys([*self._asked, self.unclear]),)
        self.target = self.labels[0]
        self.retries = whole("ServerJudge.retries", retries)
        self.wait = real("ServerJudge.wait", wait, least=0)
        self.timeout = real("ServerJudge.timeout", timeout, above=0, most=_LONGEST_TIMEOUT)
        if not isinstance(model, str) or not model.strip():
            raise ConfigError(
                "ServerJudge.model", "must be the name of a model", got=repr(model), expected="as the server has it"
            )
        # What a header can hold; its value is not repeated in an error.
        if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise ConfigError("ServerJudge.token", "must be a key", expected="printable ASCII characters")
        self.model = model
        self.question = question
        self.url = f"{_checked_address(base_url, allow_http)}/chat/completions"
        # Not huggingface_hub's client, which would send the Hub's token along, and nothing at all in offline mode.
        key = {"Authorization": f"Bearer {token}"} if token else {}
        self._headers = {"Content-Type": "application/json", **key}

    def __call__(self, prompt: str, response: str) -> str:
        """Return the label of the reply, or "unclear".

        Raises:
            [`DataError`]: if the server cannot be reached, answers with an error, or with no chat completion.
        """
        question = _ask(self.question, prompt, response, self._asked)
        messages = [{"role": "user", "content": question}]
        asked = {"model": self.model, "messages": messages, "max_tokens": 16, "temperature": 0.0}
        content = b""
        try:
            content = self._reply(json.dumps(asked).encode())
            found = parse_json_object("reply", content, is_file=False)
            (choice,) = found["choices"]
            said = choice["message"]["content"]
            said = "" if said is None else said
            # The thinking of a reasoning model, if the server leaves it in.
            said = said.rpartition("</think>")[2]
        except ReplyTooLong as error:
            expected = f"at most {MOST_BYTES} bytes"
            raise DataError(f"ServerJudge: {self.url}", "the reply is too long", expected=expected) from error
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"ServerJudge: {self.url}", "the server cannot be asked", got=str(error)) from error
        except FileFormatError as error:
            got = str(error).rstrip(".")
            raise DataError(f"ServerJudge: {self.url}", "the reply is not a chat completion", got=got) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            got, expected = repr(content[:80].decode(errors="replace")), "one choice, whose message has content"
            what = "the reply is not a chat completion"
            raise DataError(f"ServerJudge: {self.url}", what, got=got, expected=expected) from error
        return _label_in(said, self._asked) or self.unclear

    def _reply(self, asked: bytes) -> bytes:
        """Return the server's reply; temporary faults are retried."""
        retry = 0
        while True:
            try:
                return ask(self.url, asked, self._headers, timeout=self.timeout, most_bytes=MOST_BYTES)
            except (OSError, http.client.HTTPException) as error:
                if retry == self.retries or not _may_pass(error):
                    raise
                time.sleep(min(max(self.wait * 2**retry, _retry_after(error)), LONGEST_WAIT))
                retry += 1

    def __repr__(self) -> str:
        return f"ServerJudge({self.model!r}, {self.question!r}, {list(self._asked)})"


def _checked_address(base_url: object, allow_http: bool) -> str:
    """Return the address of a server, without the slash at its end."""
    where, expected = "ServerJudge.base_url", "http:// or https://, a host and a path"
    text = base_url.rstrip("/") if isinstance(base_url, str) else ""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # parsed here first
    except ValueError as error:
        raise ConfigError(where, "must be a web address", got=f"{base_url!r}: {error}", expected=expected) from error
    plain = text.isprintable() and " " not in text and text.isascii()
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ConfigError(where, "must be a web address", got=repr(base_url), expected=expected)
    if parts.username is not None or parts.query or parts.fragment:
        fix = "Give a key as token."
        raise ConfigError(where, "holds more than host and path", expected="no user, ? or #", fix=fix)
    if parts.scheme == "http" and not allow_http and not _is_here(host):
        raise ConfigError(
            where,
            "sends prompts, responses and the key where others on the network can read them",
            got=repr(base_url),
            expected="https://, or this machine",
            fix="Pass allow_http=True (--judge-allow-http) if the network is your own.",
        )
    return text


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _label_in(said: str, labels: Sequence[str]) -> str | None:
    """Return the label that a reply is, or begins with before a punctuation mark: "Yes, it is.", "Answer: **yes**"."""
    text = said.strip().casefold()
    for lead in (_LEAD, ""):
        for label in sorted(labels, key=len, reverse=True):
            if re.match(
                rf"{lead}[\W_]*{re.escape(label.strip().casefold())}[\"'*`_)\]]*(?:\s*[.,;:!。，；：！\n—–-]|\s*$)",
                text,
            ):
                return label
    return None


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, TimeoutError | ConnectionResetError | BrokenPipeError | http.client.IncompleteRead)


def _retry_after(error: Exception) -> float:
    header = error.headers.get("Retry-After") if isinstance(error, urllib.error.HTTPError) else None
    return float(header) if header is not None and header.strip().isdecimal() else 0.0
