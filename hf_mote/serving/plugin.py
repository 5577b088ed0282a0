"""The entry point `vllm.general_plugins`: does nothing unless an engine is configured with profiles.

vLLM calls `register` in every process. It wraps three functions of vLLM: the engine's
config gets a worker with profiles, requests are admitted at the front, and checked again in the core. All three are
private to vLLM, so that only tested versions are served.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from hf_mote.errors import HFMoTEError, UnsupportedError
from hf_mote.serving.requests import DIGEST, NAME, RECORD, SLOT, Front, check_admitted, salted
from hf_mote.serving.settings import KEY, ServingSettings

__all__ = ["front_of", "register"]

TESTED = ("0.32.0",)
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "hf_mote.serving.cpu_worker.CPUWorkerWithProfiles",
    "vllm.v1.worker.gpu_worker.Worker": "hf_mote.serving.gpu_worker.GPUWorkerWithProfiles",
}
_MARK = "_hf_mote"


def register() -> None:
    """Entry point that vLLM calls in every process, possibly more than once."""
    arguments = sys.modules.get("vllm.engine.arg_utils")
    if arguments is not None:
        _wrap(arguments.EngineArgs, "create_engine_config", _create_engine_config)
    core = sys.modules.get("vllm.v1.engine.core")
    if core is not None and hasattr(core, "EngineCore"):
        _watch_core(core.EngineCore)


def front_of(processor: Any) -> Front:
    """Return the front of a process that accepts requests.

    Args:
        processor (`InputProcessor`): vLLM's input processor.
    """
    front: Front | None = getattr(processor, _MARK, None)
    if front is None:
        given = processor.vllm_config.additional_config
        settings = ServingSettings.read(given[KEY]) if isinstance(given, dict) and KEY in given else None
        front = Front(settings)
        setattr(processor, _MARK, front)
    return front


def _wrap(owner: Any, name: str, around: Any) -> None:
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, _MARK, True)
    setattr(owner, name, wrapper)


def _create_engine_config(original: Any, arguments: Any, *args: Any, **kwargs: Any) -> Any:
    # These are imported at the latest when an engine accepts its first request.
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(InputProcessor, "process_inputs", _process_inputs)
    _watch_core(EngineCore)
    config = original(arguments, *args, **kwargs)
    given = config.additional_config
    if isinstance(given, dict) and KEY in given:
        settings = ServingSettings.read(given[KEY])
        _check_engine(config, settings)
        config.additional_config = {**given, KEY: settings.to_dict()}
        config.parallel_config.worker_cls = WORKERS[config.parallel_config.worker_cls]
        if settings.record:
            # With asynchronous scheduling a finished request is run once more, with a token that is not used.
            config.scheduler_config.async_scheduling = False
    return config


def _check_engine(config: Any, settings: ServingSettings) -> None:
    """Refuse engines in which profiles were not tested against transformers."""
    import vllm

    version = vllm.__version__.partition("+")[0]
    if version not in TESTED:
        fix = f"Install vLLM {TESTED[-1]}, or serve without profiles."
        raise UnsupportedError("vLLM", "this version was not tried", got=version, expected=", ".join(TESTED), fix=fix)
    parallel, speculative = config.parallel_config, config.speculative_config
    if parallel.worker_cls not in WORKERS and parallel.worker_cls not in WORKERS.values():
        raise UnsupportedError("worker_cls", "not one that profiles were tested with", got=parallel.worker_cls)
    refused = {
        "data parallelism": (parallel.data_parallel_size > 1, parallel.data_parallel_size),
        "pipeline parallelism": (parallel.pipeline_parallel_size > 1, parallel.pipeline_parallel_size),
        "expert parallelism": (parallel.enable_expert_parallel, "enable_expert_parallel"),
        "EPLB": (parallel.enable_eplb, "enable_eplb"),
        "microbatches": (getattr(parallel, "enable_dbo", False), "enable_dbo"),
        "speculative decoding": (speculative is not None, getattr(speculative, "method", None)),
        "LoRA": (config.lora_config is not None, "lora_config"),
        "a connector of keys and values, which may ignore the salt": (
            config.kv_transfer_config is not None,
            "kv_transfer_config",
        ),
    }
    for what, (there, got) in refused.items():
        if there:
            fix = "Leave it out, or serve without profiles."
            raise UnsupportedError("engine", f"profiles were not tried with {what}", got=got, fix=fix)
    if config.use_v2_model_runner:
        fix = "Set VLLM_USE_V2_MODEL_RUNNER=0 in the environment."
        raise UnsupportedError("engine", "profiles were not tried with Model Runner V2", fix=fix)
    if config.model_config.runner_type != "generate":
        raise UnsupportedError("engine", "profiles are for models that generate", got=config.model_config.runner_type)


def _process_inputs(
    original: Any, processor: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    extra = getattr(params, "extra_args", None)
    admitted = None
    if extra and any(name in extra for name in (NAME, RECORD, DIGEST, SLOT)):
        from vllm.exceptions import VLLMValidationError

        try:
            admitted = front_of(processor).admit(extra)
        except HFMoTEError as error:
            raise VLLMValidationError(str(error), parameter="extra_args", value=extra.get(NAME)) from error
    request = original(processor, request_id, prompt, params, *args, **kwargs)
    if admitted is not None:
        request.sampling_params.extra_args = admitted  # the request's own copy
        request.cache_salt = salted(request.cache_salt, admitted)
    return request


def _watch_core(core: Any) -> None:
    _wrap(core, "preprocess_add_request", _preprocess)
    _wrap(core, "collective_rpc", _collective_rpc)


def _known(core: Any) -> set[str]:
    known: set[str] | None = getattr(core, _MARK, None)
    if known is None:
        given = core.vllm_config.additional_config
        settings = ServingSettings.read(given[KEY]) if isinstance(given, dict) and KEY in given else ServingSettings()
        known = {profile.digest for profile in settings.profiles.values()}
        setattr(core, _MARK, known)
    return known


def _preprocess(original: Any, core: Any, request: Any) -> Any:
    extra = _extra_of(request)
    if extra:
        check_admitted(extra, request.cache_salt, _known(core))
    return original(core, request)


def _collective_rpc(original: Any, core: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    if method in ("mote_unload", "mote_take"):
        given = kwargs["args"] if "args" in kwargs else args[1]
        name = DIGEST if method == "mote_unload" else SLOT
        running = sum(_extra_of(request).get(name) == given[0] for request in core.scheduler.requests.values())
        if running:
            return [{"error": f"{running} running requests need it"}]
    answers = original(core, method, *args, **kwargs)
    if method in ("mote_load", "mote_unload") and all(answer["error"] is None for answer in answers):
        known = _known(core)
        known.clear()
        known.update(answers[0]["digests"])
    return answers


def _extra_of(request: Any) -> Any:
    return getattr(request.sampling_params, "extra_args", None) or {}
