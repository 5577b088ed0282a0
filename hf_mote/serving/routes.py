"""Profiles and recordings over HTTP: routes beside vLLM's own, where `VLLM_PLUGINS=hf_mote` is set.

| route | does |
| --- | --- |
| `GET /v1/mote/profiles` | all profiles, by name |
| `PUT /v1/mote/profiles/NAME` | loads the config in the body under a name; running requests keep the earlier one |
| `DELETE /v1/mote/profiles/NAME` | unloads it |
| `GET /v1/mote/model` | the model: name, fingerprint, config, dtype, logprobs mode; how many recordings may be open |
| `POST /v1/mote/recordings/KEY` | the recording of requests with `"mote_record": KEY`, which makes room |

Configs come in the body and never from a path of the server. Loaded by vLLM alone, which brings FastAPI.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from hf_mote.errors import FileFormatError, HFMoTEError, UnsupportedError
from hf_mote.files import parse_json_object
from hf_mote.mote.config import MoTEConfig
from hf_mote.serving.plugin import front_of
from hf_mote.serving.requests import Front

__all__ = ["ProfileRoutes"]


class ProfileRoutes:
    """What vLLM's group `vllm.endpoint_plugins` asks for."""

    name = "hf_mote"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes to vLLM's application."""
        app.add_api_route("/v1/mote/profiles", _list, methods=["GET"])
        app.add_api_route("/v1/mote/profiles/{name}", _put, methods=["PUT"])
        app.add_api_route("/v1/mote/profiles/{name}", _delete, methods=["DELETE"])
        app.add_api_route("/v1/mote/model", _model, methods=["GET"])
        app.add_api_route("/v1/mote/recordings/{key}", _take, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep what the routes need."""
        state.mote_engine = engine_client
        state.mote_lock = asyncio.Lock()


async def _list(request: Request) -> JSONResponse:
    return await _answer(request, _profiles)


async def _put(request: Request, name: str) -> JSONResponse:
    try:
        given = parse_json_object("The body", await request.body(), is_file=False)
    except FileFormatError as error:
        return JSONResponse({"error": {"message": str(error), "code": 400}}, status_code=400)

    async def load(engine: Any, front: Front) -> dict[str, Any]:
        profile = front.check_load(name, MoTEConfig.from_dict(given))
        await _drop_stale(engine, front)
        await _rpc(engine, "mote_load", {"name": name, "config": profile.config.to_dict()})
        front.loaded(profile)
        await _drop_stale(engine, front)
        return {"name": name, "digest": profile.digest}

    return await _answer(request, load)


async def _delete(request: Request, name: str) -> JSONResponse:
    async def unload(engine: Any, front: Front) -> dict[str, Any]:
        front.forget(name)
        await _drop_stale(engine, front)
        return {"name": name}

    return await _answer(request, unload)


async def _model(request: Request) -> JSONResponse:
    async def describe(engine: Any, front: Front) -> dict[str, Any]:
        described = await _rpc(engine, "mote_describe")
        record = front.settings.record if front.settings is not None else 0
        model = str(engine.vllm_config.model_config.model)
        dtype = str(engine.vllm_config.model_config.dtype).removeprefix("torch.")
        # What a client finds the routers by, without weights.
        config = json.loads(engine.vllm_config.model_config.hf_text_config.to_json_string(use_diff=False))
        return {
            "model": model,
            "fingerprint": described["fingerprint"],
            "record": record,
            "config": config,
            "dtype": dtype,
            "logprobs_mode": str(engine.vllm_config.model_config.logprobs_mode),
        }

    return await _answer(request, describe)


async def _take(request: Request, key: str) -> JSONResponse:
    async def take(engine: Any, front: Front) -> dict[str, Any]:
        recorded = await _rpc(engine, "mote_take", front.slot_of(key))
        front.slots.pop(key, None)
        return {"recorded": recorded["recorded"]}

    return await _answer(request, take)


async def _profiles(engine: Any, front: Front) -> dict[str, Any]:
    return {"profiles": {name: profile.config.to_dict() for name, profile in front.profiles.items()}}


async def _answer(request: Request, act: Any) -> JSONResponse:
    state = request.app.state
    try:
        front = front_of(state.mote_engine.input_processor)
        if front.settings is None:
            raise UnsupportedError("engine", "it was started without profiles", fix="See `hf-mote serve --help`.")
        async with state.mote_lock:
            return JSONResponse(await act(state.mote_engine, front))
    except HFMoTEError as error:
        return JSONResponse(
            {"error": {"message": str(error), "type": type(error).__name__, "code": 400}}, status_code=400
        )


async def _rpc(engine: Any, method: str, *args: Any) -> dict[str, Any]:
    answers = await engine.collective_rpc(method, args=args)
    for answer in answers:
        if answer["error"] is not None:
            raise UnsupportedError("engine", answer["error"].rstrip("."))
    found: dict[str, Any] = answers[0]
    return found


async def _drop_stale(engine: Any, front: Front) -> None:
    for digest in sorted(front.stale):
        answers = await engine.collective_rpc("mote_unload", args=(digest,))
        if all(answer["error"] is None for answer in answers):
            front.stale.discard(digest)
