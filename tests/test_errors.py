"""The errors' messages."""

from __future__ import annotations

from hf_mote.errors import FileFormatError


def test_error_message_can_be_written_whatever_it_quotes() -> None:
    error = FileFormatError("a\0b", "has \x1b[31m", got="\ud800", expected="x" * 10**6, fix="One.\nTwo.")
    assert str(error).startswith(r"a\x00b: has \x1b[31m (got \ud800, expected xxx")
    assert str(error).endswith("One.\nTwo.")
    assert len(str(error).encode()) < 5000
    assert error.where == r"a\x00b"
