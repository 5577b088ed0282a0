"""What every test stands on.

No Hub, one thread, markers that become skips with a reason, no deprecated call, nothing global left changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

# HF_HUB_OFFLINE=0 in the environment lets the tests marked network run.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import huggingface_hub.constants
import pytest
import torch
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from hub_server import HubServer

# One thread: tiny models run fastest so, and sums are added up in the same order on every machine.
torch.set_num_threads(1)
# transformers sets its logger's level when it first logs: here, and not within some test.
transformers_logging.get_verbosity()


# What must hold on every release of transformers that is admitted: its own behaviour, families, recording by phase,
# scopes, the organisms, SAEs saved and loaded. `pytest -m core` runs these files.
CORE = (
    "canaries",
    "mote/test_parts.py",
    "organisms/test_organism.py",
    "passes",
    "ranking/imaging/test_scopes.py",
    "routing/recording",
    "routing/rules/test_families.py",
    "routing/test_conformance.py",
    "sae/test_saving.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = "slow; run with --slow"
    if not torch.cuda.is_available():
        skips["gpu"] = "needs a GPU"
    if find_spec("vllm") is None:
        skips["vllm"] = "needs vLLM, in the environment that tests/serving/environment.py makes"
    if os.environ["HF_HUB_OFFLINE"] == "1":
        skips["network"] = "needs the Hub, and the tests are offline"
    core = tuple(str(Path(__file__).parent / name) for name in CORE)
    for item in items:
        if str(item.path).startswith(core):
            item.add_marker("core")
        for marker, reason in skips.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


class _Deprecations(logging.Handler):
    """Collects the log lines in which transformers calls something deprecated."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if "deprecat" in line.lower():
            self.lines.append(line)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback, which the client of this process talks to, logged in as alice."""
    import huggingface_hub
    from hub_server import HubServer

    # Waits of the client before it takes up what was cut off.
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 512)
    with HubServer() as server, server.connected(cache=tmp_path / "hub-cache"):
        yield server


@pytest.fixture(autouse=True)
def no_transformers_deprecation() -> Iterator[None]:
    """Fail the test in which transformers logs a deprecation: it does not use `warnings` for most of them."""
    handler = _Deprecations()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not handler.lines, f"transformers calls something deprecated: {handler.lines}"


def _global_state() -> dict[str, object]:
    levels = {f"level of the logger {name!r}": logging.getLogger(name).level for name in ("transformers", "hf_mote")}
    return {
        **levels,
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "working directory": os.getcwd(),
        "whether the Hub may be asked": not huggingface_hub.constants.HF_HUB_OFFLINE,
        "which Hub": huggingface_hub.constants.ENDPOINT,
    }


@pytest.fixture(autouse=True)
def nothing_global_left_changed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves global state changed, on which later ones may depend; put back levels of loggers."""
    before, environment = _global_state(), dict(os.environ)
    yield
    after = _global_state()
    for name in ("transformers", "hf_mote"):
        logging.getLogger(name).setLevel(before[f"level of the logger {name!r}"])  # type: ignore[arg-type]
    # The second is set when torch's compiler is first imported.
    names = (environment.keys() | os.environ.keys()) - {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
    if request.node.get_closest_marker("vllm"):  # which writes its settings there, and those of what it loads
        names = set()
    before |= {name: environment.get(name) for name in names}
    after |= {name: os.environ.get(name) for name in names}
    changed = {name: (value, after[name]) for name, value in before.items() if after[name] != value}
    assert not changed, f"left changed, before and after: {changed}"
