"""Engines of vLLM for the tests marked `vllm`: in this process, in float32, one at a time."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.servers import Server

# Settings of vLLM, which reads them when it is imported.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_MLA_DISABLE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def start(model: Path, settings: dict[str, Any] | None, **more: Any) -> Any:
    """Return an engine for a checkpoint, with settings of the plugin or without."""
    from vllm import LLM

    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 96,
        "block_size": 32,
        "kv_cache_memory_bytes": 2**28,
        # Its own kernel rotates queries of more than one head wrongly on a CPU.
        "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
        "disable_log_stats": True,
    }
    if settings is not None:
        options["additional_config"] = {"hf_mote": settings}
    return LLM(str(model), **{**options, **more})


def stop() -> None:
    """End the engines of this process that nothing holds any more."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.stop()


@pytest.fixture
def engine() -> Iterator[Callable[..., Any]]:
    """`start`, ending what was started with the test."""
    yield start
    stop()
