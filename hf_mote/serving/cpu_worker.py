"""vLLM's CPU worker, with profiles; imported by vLLM by name."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from hf_mote.serving.workers import WithProfiles

__all__ = ["CPUWorkerWithProfiles"]


class CPUWorkerWithProfiles(WithProfiles, CPUWorker):  # type: ignore[misc]
    """A CPU worker with profiles."""
