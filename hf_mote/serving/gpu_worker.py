"""vLLM's GPU worker, with profiles; imported by vLLM by name."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from hf_mote.serving.workers import WithProfiles

__all__ = ["GPUWorkerWithProfiles"]


class GPUWorkerWithProfiles(WithProfiles, Worker):  # type: ignore[misc]
    """A GPU worker with profiles."""
