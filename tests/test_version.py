"""A transformers that is newer than all that were run says so once, and names what to run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from tiny_models import tiny_model

from hf_mote import MoTEConfig, apply_mote, version
from hf_mote.version import TESTED_TRANSFORMERS, warn_if_untested


@pytest.fixture(autouse=True)
def not_warned_yet() -> Iterator[None]:
    warn_if_untested.cache_clear()
    yield
    warn_if_untested.cache_clear()


def attach_twice(caplog: pytest.LogCaptureFixture) -> list[str]:
    model = tiny_model("mixtral")
    for _ in range(2):
        with (
            caplog.at_level(logging.WARNING),
            apply_mote(model, MoTEConfig(suppress=[[0, 1]], suppress_mode="zero", strength=0.5)),
        ):
            pass
    return [record.getMessage() for record in caplog.records if record.name == "hf_mote.version"]


@pytest.mark.parametrize("newer", ["5.99.0", "5.99.0.dev0", f"{TESTED_TRANSFORMERS[-1]}.post1"])
def test_attach_on_a_newer_transformers_warns_once(
    newer: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "_installed", lambda: newer)
    (line,) = attach_twice(caplog)
    assert newer in line
    assert TESTED_TRANSFORMERS[-1] in line
    assert "pytest tests/canaries" in line


@pytest.mark.parametrize("known", [TESTED_TRANSFORMERS[0], TESTED_TRANSFORMERS[-1], "5.17.0"])
def test_attach_on_an_older_transformers_warns_of_nothing(
    known: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "_installed", lambda: known)
    assert attach_twice(caplog) == []
