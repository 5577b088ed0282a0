"""Profiles and recordings of a server that `hf-mote serve` started: `ServerEngine(url)`, over HTTP and nothing else.

It follows the same protocol as [`VLLMEngine`], so that a model too large for this process is imaged where it runs.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import checked_fingerprint
from hf_mote.serving.recorded import RecordedBatch, maps_of, of_phase
from hf_mote.serving.requests import NAME, RECORD
from hf_mote.serving.settings import config_from
from hf_mote.web import ask

__all__ = ["ServerEngine"]

_MOST_BYTES = 2**30  # of a reply: recordings of long responses


class ServerEngine:
    """A server of vLLM with profiles.

    Args:
        url (`str`): Where it listens, such as "http://127.0.0.1:8000".
        api_key (`str`, *optional*): The key that it asks for.
        timeout (`float`, *optional*, defaults to 600): Seconds to wait for an answer.

    Raises:
        [`UnsupportedError`]: if nobody answers there, or a server without profiles.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            expected = "http://HOST:PORT"
            raise ConfigError("ServerEngine.url", "is no address of a server", got=repr(url), expected=expected)
        self.url = url.rstrip("/")
        self._key = api_key
        self._timeout = timeout
        told = self._ask("GET", "/v1/mote/model")
        try:
            self.fingerprint: dict[str, Any] = checked_fingerprint(self._told(told, dict, "fingerprint"))
        except ConfigError as error:
            raise UnsupportedError(self.url, "says of no model what it is", got=str(error).rstrip(".")) from error
        self._base_model: str = self._told(told, str, "model")
        self._record: int = self._told(told, int, "record")
        self._served: str = self._told(self._ask("GET", "/v1/models"), str, "data", 0, "id")

    @property
    def base_model(self) -> str:
        """What the server loaded its model from."""
        return self._base_model

    @property
    def profiles(self) -> dict[str, MoTEConfig]:
        """The profiles by name."""
        found: dict[str, Any] = self._told(self._ask("GET", "/v1/mote/profiles"), dict, "profiles")
        return {name: MoTEConfig.from_dict(config) for name, config in found.items()}

    def load(self, name: str, config: MoTEConfig | str | os.PathLike[str]) -> None:
        """Make a profile known to the server; see [`VLLMEngine.load`]."""
        self._ask("PUT", f"/v1/mote/profiles/{urllib.parse.quote(name, safe='')}", config_from(config).to_dict())

    def unload(self, name: str) -> None:
        """Let the server forget a profile."""
        self._ask("DELETE", f"/v1/mote/profiles/{urllib.parse.quote(name, safe='')}")

    def take(self, key: str) -> dict[str, ActivationMap]:
        """Return what was recorded of the requests that named a key, by phase; see [`VLLMEngine.take`]."""
        found = self._ask("POST", f"/v1/mote/recordings/{urllib.parse.quote(key, safe='')}")
        return maps_of(self._told(found, dict, "recorded"), self.fingerprint, self.base_model)

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
        if len(prompts) > self._record:
            fix = "Give fewer at a time (batch_size), or serve with a larger --record."
            what = "more prompts than recordings"
            raise UnsupportedError("ServerEngine.image", what, got=len(prompts), expected=self._record, fix=fix)

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
            tokens = self._told(self._ask("POST", "/v1/completions", body), list, "choices", 0, "token_ids")
            if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in tokens):
                raise UnsupportedError(self.url, "answers with what is no token", got=repr(tokens)[:80])
            return list(tokens), of_phase(self.take(key), phase)

        with ThreadPoolExecutor(max(len(prompts), 1)) as pool:
            answers = list(pool.map(one, prompts))
        return RecordedBatch.of([tokens for tokens, _ in answers], [seen for _, seen in answers])

    def _told(self, reply: Any, kind: type, *places: str | int) -> Any:
        """Return what a reply holds at a place, of a type."""
        value = reply
        for place in places:
            try:
                value = value[place]
            except (LookupError, TypeError):
                value = None
                break
        if not isinstance(value, kind) or isinstance(value, bool):
            where = ".".join(map(str, places))
            raise UnsupportedError(
                self.url, f"its reply has no {where}", got=repr(reply)[:80], fix="Start it with `hf-mote serve`."
            )
        return value

    def _ask(self, method: str, route: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}{route}"
        try:
            return json.loads(
                ask(url, data, headers, timeout=self._timeout, most_bytes=_MOST_BYTES, method=method).decode()
            )
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            try:
                message = json.loads(said)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = said[:300] or str(error)
            fix = "Start it with `hf-mote serve`." if error.code == 404 and route.startswith("/v1/mote") else None
            raise UnsupportedError(self.url, message.rstrip("."), got=f"status {error.code}", fix=fix) from error
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            fix = "Start it with `hf-mote serve`, and wait until it says that it is ready."
            raise UnsupportedError(self.url, "no answer", got=str(error), fix=fix) from error
