"""`ServerJudge`: a label by a chat model behind a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from hf_mote.errors import ConfigError, DataError, real, whole
from hf_mote.judges.language_model import _ask, _checked

__all__ = ["ServerJudge"]

LONGEST_WAIT = 60.0  # seconds between two attempts
_LEAD = r"[\W_]*(?:(?:my|the) )?(?:final )?(?:answer|label|verdict)\b(?: is\b)?"


class ServerJudge:
    """Labels a response by what a chat model behind a server replies.

    Args:
        base_url (`str`): Where the server is: "http://localhost:8000/v1". It speaks OpenAI's chat completions.
        model (`str`): The model's name on it.
        question (`str`): What is asked about the response.
        labels (`Sequence[str]`, *optional*, defaults to `("yes", "no")`): Two or more; the first is of interest.
        token (`str`, *optional*): The server's key, if it wants one.
        timeout (`float`, *optional*, defaults to 60.0): Seconds to wait for a reply.
        retries (`int`, *optional*, defaults to 4):
            How often a request is made again after a time-out, a connection that broke off, or status 408, 429 or
            500 and above. Any other failure, and the last of these, ends the run.
        wait (`float`, *optional*, defaults to 1.0):
            Seconds before the first of them; each time twice as many, or as many as the server's `Retry-After` says
            if that is more, and 60 at most.

    Attributes:
        target (`str`): The first label.
        labels (`tuple[str, ...]`): Yours and "unclear".
        unclear (`str`):
            "unclear", for a reply that is none of your labels and does not begin with one before a punctuation mark.
            `EvaluationReport.unclear` counts them.

    Raises:
        [`ConfigError`]: if there is no question, fewer than two different labels, or a number is out of range.
    """

    unclear = "unclear"

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
    ) -> None:
        self._asked = _checked("ServerJudge", question, labels)
        self.labels = (*dict.fromkeys([*self._asked, self.unclear]),)
        self.target = self.labels[0]
        self.retries = whole("ServerJudge.retries", retries)
        self.wait = real("ServerJudge.wait", wait, least=0)
        self.model = model
        self.question = question
        if not str(base_url).startswith(("http://", "https://")):
            raise ConfigError(
                "ServerJudge.base_url", "is no web address", got=base_url, expected="http:// or https://"
            )
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.timeout = timeout
        # Not huggingface_hub's client, which would send the Hub's token along, and nothing at all in offline mode.
        key = {"Authorization": f"Bearer {token}"} if token else {}
        self._headers = {"Content-Type": "application/json", **key}

    def __call__(self, prompt: str, response: str) -> str:
        """Return the label of the reply, or "unclear".

        Raises:
            [`DataError`]: if the server cannot be reached, answers with an error, or with no chat completion.
        """
        content = _ask(self.question, prompt, response, self._asked)
        messages = [{"role": "user", "content": content}]
        asked = {"model": self.model, "messages": messages, "max_tokens": 16, "temperature": 0.0}
        text = ""
        try:
            text = self._reply(json.dumps(asked).encode())
            said = json.loads(text)["choices"][0]["message"]["content"] or ""
            # What a reasoning model thinks, where the server leaves it in.
            said = said.rpartition("</think>")[2]
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"ServerJudge: {self.url}", "the server cannot be asked", got=str(error)) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            got = repr(text[:80])
            raise DataError(f"ServerJudge: {self.url}", "is no chat completion", got=got) from error
        return _label_in(said, self._asked) or self.unclear

    def _reply(self, asked: bytes) -> str:
        """Return what the server answers, which a fault that may pass delays."""
        retry = 0
        while True:
            try:
                request = urllib.request.Request(self.url, asked, self._headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return str(reply.read().decode())
            except (OSError, http.client.HTTPException) as error:
                if retry == self.retries or not _may_pass(error):
                    raise
                time.sleep(min(max(self.wait * 2**retry, _told_to_wait(error)), LONGEST_WAIT))
                retry += 1

    def __repr__(self) -> str:
        return f"ServerJudge({self.model!r}, {self.question!r}, {list(self._asked)})"


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


def _told_to_wait(error: Exception) -> float:
    told = error.headers.get("Retry-After") if isinstance(error, urllib.error.HTTPError) else None
    return float(told) if told is not None and told.strip().isdecimal() else 0.0
