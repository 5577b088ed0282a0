"""Canaries: each test is one assumption about transformers, and fails with one line that says which one broke.

`pytest tests/canaries` runs them on whatever transformers is installed. None of them tests this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import transformers
from routing_cases import no_gradients  # noqa: F401
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from transformers import PreTrainedModel

UNLISTED = pytest.StashKey[list[str]]()


class Pass(NamedTuple):
    """What a decoder was called with, what its cache held then, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    held: int
    output: Any


class Watched:
    """A model, and the passes of its decoder since the last look."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        self._before: list[tuple[Any, ...]] = []
        self._passes: list[Pass] = []
        self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.decoder.register_forward_hook(self._leave, with_kwargs=True)

    def passes(self) -> list[Pass]:
        found, self._passes = self._passes, []
        return found

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        caches = [value for value in kwargs.values() if isinstance(value, transformers.Cache)]
        self._before.append((args, dict(kwargs), int(caches[0].get_seq_length()) if caches else 0))

    def _leave(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._passes.append(Pass(*self._before.pop(), output))


def _model(name: str) -> PreTrainedModel:
    return TINY_FAMILIES[name]() if name == "qwen3_next" else tiny_model(name)


@pytest.fixture(params=["mixtral", "deepseek_v3", "qwen3_next"])
def watched(request: pytest.FixtureRequest) -> Watched:
    """Models with plain, latent and linear attention."""
    return Watched(_model(request.param))


@pytest.fixture
def mixtral() -> PreTrainedModel:
    return tiny_model("mixtral")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Say in one line which assumption broke, and how it showed."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and call.excinfo is not None and isinstance(item, pytest.Function):
        assumption = (item.function.__doc__ or item.name).strip().partition("\n")[0]
        shown = call.excinfo.exconly().strip().partition("\n")[0]
        report.longrepr = f"transformers {transformers.__version__} breaks an assumption: {assumption} ({shown})"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the routers that no row lists: models of such families are refused, which is no failure."""
    if unlisted := config.stash.get(UNLISTED, []):
        version = transformers.__version__
        terminalreporter.write_line(f"router classes of transformers {version} without a row: {', '.join(unlisted)}")
