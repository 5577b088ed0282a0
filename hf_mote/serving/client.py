"""Profiles and recordings of a server that `hf-mote serve` started: `ServerEngine(url)`, over HTTP and nothing else.

It follows the same protocol as [`VLLMEngine`], so that a model too large for this process is imaged and measured
where it runs.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from torch import nn
from transformers import AutoConfig

from hf_mote.errors import ConfigError, FileFormatError, UnsupportedError
from hf_mote.files import parse_json_object
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import checked_fingerprint
from hf_mote.routing.sites.fingerprint import fingerprint_of
from hf_mote.routing.sites.site import RouterSite
from hf_mote.serving.recorded import RAW, Answered, RecordedBatch, check_raw, maps_of, numbers_of, of_phase
from hf_mote.serving.requests import NAME, RECORD
from hf_mote.serving.routers import meta_sites
from hf_mote.serving.settings import config_from
from hf_mote.web import ask, ask_in_parts

__all__ = ["ServerEngine"]

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
_CHAT = "/v1/chat/completions"
_MOST_BYTES = 2**30  # of a reply: recordings of long responses
_MOST_BYTES_OF_EVENTS = 2**26  # of an answer in parts
_MOST_TOKENS = 2**31  # of a vocabulary, where the server does not tell its size
_CONTENT, _THINKING = "content", ("reasoning_content", "reasoning")


class ServerEngine:
    """A server of vLLM with profiles.

    Args:
        url (`str`): Where it listens, such as "http://127.0.0.1:8000".
        api_key (`str`, *optional*): Its key, if it needs one.
        timeout (`float`, *optional*, defaults to 600): Seconds to wait for an answer.

    Raises:
        [`UnsupportedError`]: if no server answers there, or it has no profiles.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            expected = "http://HOST:PORT"
            raise ConfigError("ServerEngine.url", "must be the address of a server", got=repr(url), expected=expected)
        self.url = url.rstrip("/")
        self._key = api_key
        self._timeout = timeout
        described = self._ask("GET", "/v1/mote/model")
        try:
            self.fingerprint: dict[str, Any] = checked_fingerprint(self._value(described, dict, "fingerprint"))
        except ConfigError as error:
            raise UnsupportedError(self.url, "does not describe its model", got=str(error).rstrip(".")) from error
        self._base_model: str = self._value(described, str, "model")
        # Earlier servers do not send it.
        self._config: dict[str, Any] | None = (
            None if described.get("config") is None else self._value(described, dict, "config")
        )
        described = {"logprobs_mode": RAW, "dtype": "unknown", **described}
        self._logprobs_mode: str = self._value(described, str, "logprobs_mode")
        self.dtype: str = self._value(described, str, "dtype")
        self.most_recordings: int = self._value(described, int, "record")
        if self.most_recordings < 0:
            got, expected = self.most_recordings, "0 or more"
            raise UnsupportedError(self.url, "record must be a number of recordings", got=got, expected=expected)
        self._served: str = self._value(self._ask("GET", "/v1/models"), str, "data", 0, "id")

    @property
    def served_name(self) -> str:
        """The model's name in requests."""
        return self._served

    @property
    def base_model(self) -> str:
        """The source of the server's model."""
        return self._base_model

    @property
    def profiles(self) -> dict[str, MoTEConfig]:
        """The profiles by name."""
        found: dict[str, Any] = self._value(self._ask("GET", "/v1/mote/profiles"), dict, "profiles")
        return {name: MoTEConfig.from_dict(config) for name, config in found.items()}

    def load(self, name: str, config: MoTEConfig | str | os.PathLike[str]) -> None:
        """Load a profile into the server; see [`VLLMEngine.load`]."""
        self._ask("PUT", f"/v1/mote/profiles/{urllib.parse.quote(name, safe='')}", config_from(config).to_dict())

    def unload(self, name: str) -> None:
        """Unload a profile from the server."""
        self._ask("DELETE", f"/v1/mote/profiles/{urllib.parse.quote(name, safe='')}")

    def take(self, key: str) -> dict[str, ActivationMap]:
        """Return what was recorded of the requests that named a key, by phase; see [`VLLMEngine.take`]."""
        found = self._ask("POST", f"/v1/mote/recordings/{urllib.parse.quote(key, safe='')}")
        return maps_of(self._value(found, dict, "recorded"), self.fingerprint, self.base_model)

    def image(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        phase: Literal["prompt", "generation", "all"] = "prompt",
        max_new_tokens: int = 64,
        profile: str | None = None,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> RecordedBatch:
        """Answer prompts and return the routing that each took; see [`VLLMEngine.image`]."""
        if len(prompts) > self.most_recordings:
            fix = "Give fewer at a time (batch_size), or serve with a larger --record."
            what = "more prompts than recordings"
            raise UnsupportedError(
                "ServerEngine.image", what, got=len(prompts), expected=self.most_recordings, fix=fix
            )

        def one(prompt: Sequence[int]) -> tuple[list[int], ActivationMap]:
            key = uuid.uuid4().hex
            body = {
                "model": self._served,
                "prompt": list(prompt),
                "max_tokens": max_new_tokens,
                "seed": seed,
                "return_token_ids": True,
                "vllm_xargs": {RECORD: key} | ({} if profile is None else {NAME: profile}),
                **{"temperature": 0.0, **(sampling or {})},
            }
            reply = self._ask("POST", "/v1/completions", body)
            tokens = self._tokens(self._value(reply, list, "choices", 0, "token_ids"), max_new_tokens)
            maps = self.take(key)
            for name, most in (("prompt", len(prompt)), ("generation", len(tokens))):
                if maps[name].num_tokens > most:
                    what, got = f"recorded more tokens of a {name} than there are", maps[name].num_tokens
                    raise UnsupportedError(self.url, what, got=f"{got:.0f}", expected=f"at most {most}")
            return tokens, of_phase(maps, phase)

        answers = self._all(one, prompts, len(prompts))
        return RecordedBatch.of([tokens for tokens, _ in answers], [seen for _, seen in answers])

    def _tokens(self, given: list[Any], most: int) -> list[int]:
        """Return checked tokens of an answer: one or more, of the server's model, and not more than were asked for."""
        size = (self._config or {}).get("vocab_size")
        end = size if isinstance(size, int) and not isinstance(size, bool) else _MOST_TOKENS
        right = all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < end for token in given)
        if not right or not 1 <= len(given) <= most:
            what, expected = "the reply must hold tokens of its model", f"1 to {most}, each from 0 to {end - 1}"
            got = repr(given)[:80] if not right or not given else f"{len(given)} tokens"
            raise UnsupportedError(self.url, what, got=got, expected=expected)
        return list(given)

    def _value(self, reply: Any, kind: Any, *places: str | int) -> Any:
        """Return the value at a place of a reply, checked to be of a type."""
        value = reply
        for place in places:
            try:
                value = value[place]
            except (LookupError, TypeError):
                value = None
                break
        if not isinstance(value, kind) or isinstance(value, bool):
            where = ".".join(map(str, places)) or "choice"
            raise UnsupportedError(
                self.url, f"its reply has no {where}", got=repr(reply)[:80], fix="Start it with `hf-mote serve`."
            )
        return value

    def routers(self) -> tuple[nn.Module, list[RouterSite]]:
        """Return the server's model without weights, and its routers.

        Raises:
            [`UnsupportedError`]: if this transformers has no such model.
        """
        if self._config is None:
            fix = "Serve with this version of hf_mote."
            raise UnsupportedError(self.url, "the server does not send its model's config", fix=fix)
        model_type = self._config.get("model_type")
        try:
            config = AutoConfig.for_model(**self._config)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnsupportedError(
                f"{self.url}: model type {model_type!r}",
                "transformers has no such model here to look its routers up in",
                got=f"{type(error).__name__}: {str(error)[:200]}",
                fix="Install the transformers that the server has.",
            ) from error
        model, sites = meta_sites(config)
        mine, theirs = fingerprint_of(model, sites), self.fingerprint
        different = [name for name in mine if name != "router_sha256" and mine[name] != theirs.get(name)]
        if different:
            what, first = "its model has other routers here than on the server", different[0]
            raise UnsupportedError(self.url, what, got=f"{first} {mine[first]}", expected=theirs.get(first))
        return model, sites

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        profile: str | None = None,
        max_new_tokens: int = 64,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
        at_once: int = 16,
    ) -> list[Answered]:
        """Answer prompts and return how likely each token of the answers was; see [`VLLMEngine.answer`]."""
        check_raw(self.url, self._logprobs_mode)

        def one(place: int) -> Answered:
            found = self._complete(
                prompts[place],
                profile,
                max_tokens=max_new_tokens,
                seed=None if seed is None else seed + place,
                return_token_ids=True,
                logprobs=0,
                **{"temperature": 0.0, **(sampling or {})},
            )
            tokens = self._tokens(self._value(found, list, "token_ids"), max_new_tokens)
            logs = numbers_of(self._value(found, list, "logprobs", "token_logprobs"))
            if len(logs) != len(tokens):
                what = "returns the probabilities of other tokens"
                raise UnsupportedError(self.url, what, got=len(logs), expected=len(tokens))
            return Answered(tokens, logs)

        return self._all(one, range(len(prompts)), at_once)

    def predict(
        self, texts: Sequence[Sequence[int]], *, profile: str | None = None, at_once: int = 16
    ) -> list[list[float]]:
        """Return the log probability of every token of texts but the first; see [`VLLMEngine.predict`]."""

        def one(text: Sequence[int]) -> list[float]:
            found = self._complete(text, profile, max_tokens=1, temperature=0.0, prompt_logprobs=0)
            steps = self._value(found, list, "prompt_logprobs")[1:]
            if len(steps) != len(text) - 1:
                what = "returns the probabilities of other tokens"
                raise UnsupportedError(self.url, what, got=len(steps), expected=len(text) - 1)
            pairs = zip(text[1:], steps, strict=True)
            return numbers_of([self._value(step, int | float, str(token), "logprob") for token, step in pairs])

        return self._all(one, texts, at_once)

    def chat(
        self,
        turns: Sequence[Mapping[str, str]],
        *,
        profile: str | None = None,
        max_new_tokens: int = 256,
        sampling: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Return the answer to a conversation, by the server's own chat template.

        Args:
            turns (`Sequence[Mapping[str, str]]`): Messages with role and content, the last one the user's.
            profile (`str`, *optional*): Profile to answer under.
            max_new_tokens (`int`, *optional*, defaults to 256): Longest answer.
            sampling (`Mapping`, *optional*): Temperature and the like, as vLLM takes them; greedy by default.
            template_kwargs (`Mapping`, *optional*): Further arguments of the chat template.
            on_text (`Callable[[str], None]`, *optional*): Called with each part of the answer as it comes.

        Raises:
            [`UnsupportedError`]: if the server does not answer, refuses, calls a tool, or stops before the answer is
                whole. A model that says nothing, or only thinks, has answered: `content` is empty or null then, and
                may be missing beside what it thought.
        """
        body: dict[str, Any] = {
            "model": self._served,
            "messages": [dict(turn) for turn in turns],
            "max_tokens": max_new_tokens,
            **{"temperature": 0.0, **(sampling or {})},
        }
        if template_kwargs:
            body["chat_template_kwargs"] = dict(template_kwargs)
        if profile is not None:
            body["vllm_xargs"] = {NAME: profile}
        if on_text is not None:
            return self._streamed({**body, "stream": True}, on_text)
        message = self._value(self._choice(self._ask("POST", _CHAT, body)), dict, "message")
        said, thought = self._text(message, _CONTENT), self._thinking(message)
        self._check_no_call(message)
        if _CONTENT not in message and not thought:
            raise self._without_content(repr(message)[:80])
        return said or thought

    def _streamed(self, body: dict[str, Any], on_text: Callable[[str], None]) -> str:
        """Return the answer to a chat that comes in events, whose texts a function gets as they come."""
        said, thought, is_answer = [], [], False
        for event in self._events(_CHAT, body):
            if "error" in event:
                raise UnsupportedError(self.url, _message_of(event) or "ended the answer with an error")
            if event.get("choices") == [] or ("choices" not in event and isinstance(event.get("usage"), dict)):
                continue  # of the usage alone
            delta = self._value(self._choice(event), dict, "delta")
            self._check_no_call(delta)
            is_answer = is_answer or any(key in delta for key in (_CONTENT, *_THINKING))
            thought.append(self._thinking(delta))
            if text := self._text(delta, _CONTENT):
                said.append(text)
                on_text(text)
        if not is_answer:
            raise self._without_content("no part that has it")
        if not said and any(thought):
            on_text("".join(thought))
        return "".join(said or thought)

    def _events(self, route: str, body: Any) -> Iterator[dict[str, Any]]:
        """Yield the server-sent events of a reply, up to the one that says it is done."""
        rest = b""
        with self._asking(route):
            for part in ask_in_parts(**{**self._request(route, body), "most_bytes": _MOST_BYTES_OF_EVENTS}):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    if line.startswith(b"data:"):
                        yield self._parsed(data)
        raise UnsupportedError(self.url, "ended the answer before it was whole", fix="Ask again.")

    def _complete(self, prompt: Sequence[int], profile: str | None, **more: Any) -> dict[str, Any]:
        """Return the one choice of a completion."""
        named = {} if profile is None else {"vllm_xargs": {NAME: profile}}
        body = {"model": self._served, "prompt": list(prompt), **named, **more}
        return self._choice(self._ask("POST", "/v1/completions", body))

    def _choice(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the one choice of a completion, or of a part of it."""
        choices = found.get("choices")
        if not isinstance(choices, list) or not choices:
            raise UnsupportedError(self.url, "the reply is not a completion", got=repr(found)[:200])
        chosen: dict[str, Any] = self._value(choices[0], dict)
        if len(choices) > 1 or chosen.get("index", 0) != 0:
            raise UnsupportedError(self.url, "the reply holds several answers", got=repr(found)[:200], expected="one")
        return chosen

    def _text(self, message: Mapping[str, Any], key: str) -> str:
        """Return a text of a message, empty where it is missing or null."""
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise UnsupportedError(self.url, f"{key} of its reply must be text", got=repr(value)[:80])
        return value or ""

    def _thinking(self, message: Mapping[str, Any]) -> str:
        """Return the thinking that a server returns beside the answer."""
        first, second = _THINKING
        return self._text(message, first) or self._text(message, second)

    def _check_no_call(self, message: Mapping[str, Any]) -> None:
        """Refuse a call of a tool, which nobody offered, in the place of an answer."""
        if calls := message.get("tool_calls"):
            fix = "Serve the model without a parser of tool calls."
            raise UnsupportedError(
                self.url, "its reply must be an answer", got=f"a call of a tool: {calls!r}"[:80], fix=fix
            )

    def _without_content(self, got: str) -> UnsupportedError:
        expected, fix = "a text, or null if the model said nothing", "Ask again."
        return UnsupportedError(self.url, f"its reply must have {_CONTENT}", got=got, expected=expected, fix=fix)

    def _all(self, one: Callable[[_Given], _Found], given: Sequence[_Given], at_once: int) -> list[_Found]:
        """Return a function's results for each item, several at once; after an error the others are not awaited."""
        pool = ThreadPoolExecutor(max(min(at_once, len(given)), 1))
        try:
            return list(pool.map(one, given))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, method: str, route: str, body: Any = None) -> dict[str, Any]:
        with self._asking(route):
            return self._parsed(ask(**self._request(route, body), method=method))

    def _parsed(self, content: bytes) -> dict[str, Any]:
        """Return the object in a reply, which is read as strictly as a file."""
        try:
            return parse_json_object("reply", content, is_file=False)
        except FileFormatError as error:
            raise UnsupportedError(self.url, "its reply cannot be read", got=str(error).rstrip(".")) from error

    def _request(self, route: str, body: Any) -> dict[str, Any]:
        """Return the arguments of `ask`."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}{route}"
        return {"url": url, "data": data, "headers": headers, "timeout": self._timeout, "most_bytes": _MOST_BYTES}

    @contextmanager
    def _asking(self, route: str) -> Iterator[None]:
        """Turn errors of a request into errors of this package."""
        try:
            yield
        except urllib.error.HTTPError as error:
            said = error.read()
            try:
                message = _message_of(parse_json_object("reply", said, is_file=False))
            except FileFormatError:
                message = None
            message = message or said[:300].decode(errors="replace") or str(error)
            fix = "Start it with `hf-mote serve`." if error.code == 404 and route.startswith("/v1/mote") else None
            raise UnsupportedError(self.url, message.rstrip("."), got=f"status {error.code}", fix=fix) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            fix = "Start it with `hf-mote serve`, and wait until it says that it is ready."
            raise UnsupportedError(self.url, "no answer", got=str(error), fix=fix) from error


def _message_of(reply: Mapping[str, Any]) -> str | None:
    """Return the message of an error in the format of OpenAI's interface, `None` where there is none."""
    error = reply.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
