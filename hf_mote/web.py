"""One request to a server that a user named, without redirection, with a limit on the reply and on the wait."""

from __future__ import annotations

import io
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

__all__ = ["ReplyTooLong", "ask", "ask_in_parts"]

_MOST_OF_AN_ERROR = 2**16


class ReplyTooLong(ValueError):
    """A reply is longer than the limit."""


def ask(
    url: str,
    data: bytes | None,
    headers: Mapping[str, str],
    *,
    timeout: float,
    most_bytes: int,
    method: str | None = None,
) -> bytes:
    """Return a server's whole reply within a time limit.

    Args:
        url (`str`): The address. A redirection is an error: what is sent goes to no other address than this one.
        data (`bytes`, *optional*): What is sent.
        headers (`Mapping[str, str]`): Headers, such as a key.
        timeout (`float`): Seconds until the whole reply must be there.
        most_bytes (`int`): Most bytes of it.
        method (`str`, *optional*): By default POST where something is sent, else GET.

    Raises:
        `TimeoutError`: if it takes longer.
        [`ReplyTooLong`]: if it is longer.
        `urllib.error.HTTPError`: if the server answers with an error, whose body can be read, or redirects.
        `OSError`, `http.client.HTTPException`: if it cannot be asked.
    """
    return b"".join(ask_in_parts(url, data, headers, timeout=timeout, most_bytes=most_bytes, method=method))


def ask_in_parts(
    url: str,
    data: bytes | None,
    headers: Mapping[str, str],
    *,
    timeout: float,
    most_bytes: int,
    method: str | None = None,
) -> Iterator[bytes]:
    """Yield the parts of a server's reply as they come.

    Args:
        url (`str`): As of [`ask`], like the other arguments; `timeout` is until the last part is there.
        data (`bytes`, *optional*): What is sent.
        headers (`Mapping[str, str]`): Headers.
        timeout (`float`): Seconds until the reply must be there whole.
        most_bytes (`int`): Most bytes of all parts.
        method (`str`, *optional*): By default POST where something is sent, else GET.

    Raises:
        As [`ask`] does; parts may have been yielded before.
    """
    found: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    left = threading.Event()
    deadline = time.monotonic() + timeout

    def run() -> None:
        try:
            request = urllib.request.Request(url, data, dict(headers), method=method)
            with _OPENER.open(request, timeout=timeout) as reply:
                seen = 0
                while (part := reply.read1(2**16)) and not left.is_set():
                    seen += len(part)
                    if seen > most_bytes:
                        raise ReplyTooLong(f"a reply of more than {most_bytes} bytes")
                    found.put(part)
                found.put(b"")
        except urllib.error.HTTPError as error:
            found.put(_detached(error))
        except Exception as error:
            found.put(error)

    # A time-out of the socket is one of each byte: a server that sends one a second would never meet it.
    thread = threading.Thread(target=run, name=f"asks {url[:80]}", daemon=True)
    thread.start()
    try:
        while True:
            try:
                outcome = found.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise TimeoutError(f"no whole reply within {timeout:g} s") from None
            if isinstance(outcome, Exception):
                try:
                    raise outcome
                finally:
                    del outcome  # whose traceback holds this frame
            if not outcome:
                return
            yield outcome
    finally:
        left.set()


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Raises an error at a redirection, which could send the key to another server."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        fp.close()
        reason = f"the server redirects, to {newurl[:200]!r}: give that address"
        raise urllib.error.HTTPError(req.full_url, code, reason, headers, io.BytesIO())


def _detached(error: urllib.error.HTTPError) -> urllib.error.HTTPError:
    """Return an error with the beginning of its body, and without its connection."""
    body = b""
    if error.fp is not None:
        with suppress(Exception):  # an error whose body comes in parts
            body = error.read(_MOST_OF_AN_ERROR)
        error.close()
    return urllib.error.HTTPError(str(error.filename), error.code, error.msg, error.hdrs, io.BytesIO(body))


_OPENER = urllib.request.build_opener(_NoRedirection)
