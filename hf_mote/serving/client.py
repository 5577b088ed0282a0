"""Profiles and recordings of a server that `hf-mote serve` started: `ServerEngine(url)`, over HTTP and nothing else.

It follows the same protocol as [`VLLMEngine`], so that a model too large for this process is imaged where it runs.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.mote.config import MoTEConfig
from hf_mote.serving.recorded import RecordedBatch, maps_of, of_phase
from hf_mote.serving.requests import NAME, RECORD
from hf_mote.serving.settings import config_from

__all__ = ["ServerEngine"]


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
        self.fingerprint: dict[str, Any] = told["fingerprint"]
        self._base_model: str = told["model"]
        self._record: int = told["record"]
        self._served: str = self._ask("GET", "/v1/models")["data"][0]["id"]

    @property
    def base_model(self) -> str:
        """What the server loaded its model from."""
        return self._base_model

    @property
    def profiles(self) -> dict[str, MoTEConfig]:
        """The profiles by name."""
        found = self._ask("GET", "/v1/mote/profiles")["profiles"]
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
        return maps_of(found["recorded"], self.fingerprint, self.base_model)

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
            tokens = self._ask("POST", "/v1/completions", body)["choices"][0]["token_ids"]
            return list(tokens), of_phase(self.take(key), phase)

        with ThreadPoolExecutor(max(len(prompts), 1)) as pool:
            answers = list(pool.map(one, prompts))
        return RecordedBatch.of([tokens for tokens, _ in answers], [seen for _, seen in answers])

    def _ask(self, method: str, route: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{route}", data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            try:
                message = json.loads(said)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = said[:300] or str(error)
            fix = "Start it with `hf-mote serve`." if error.code == 404 and route.startswith("/v1/mote") else None
            raise UnsupportedError(self.url, message.rstrip("."), got=f"status {error.code}", fix=fix) from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            fix = "Start it with `hf-mote serve`, and wait until it says that it is ready."
            raise UnsupportedError(self.url, "no answer", got=str(error), fix=fix) from error
