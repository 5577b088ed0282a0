"""Markup that escapes by default: everything that is not [`Html`] is text, and is escaped.

Prompts and responses are untrusted and are shown in a page that a person opens, so the one function that makes an
element escapes them. An element also cannot point outside the page: links lead only to places in it, sources are only
pictures in it. Data for the page's script is not markup either: what could end its element is escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

__all__ = ["Child", "Html", "chip", "data_block", "join", "tag", "visible"]

_VOID = frozenset({"br", "col", "hr", "img", "meta"})
_REFERENCES = frozenset({"action", "data", "formaction", "href", "poster", "src", "srcset"})
_WITHIN = ("#", "data:image/png;base64,")

# Control characters but tab and newline become the pictures that Unicode has of them; half a surrogate pair is not one
# of them.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD) | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


class Html(str):
    """Text that is markup. Made only by [`tag`] and [`join`]."""

    __slots__ = ()


Child: TypeAlias = "str | Html | None"


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """Return an element.

    Args:
        name (`str`): Its name.
        *children (`str` or `Html`): What is in it; a `str` is escaped, `None` is left out.
        **attributes (`str`, `int`, `float` or `bool`):
            `class_` stands for `class`, `aria_label` for `aria-label`. `None` and `False` are left out, `True` stands
            without a value.

    Raises:
        `ValueError`: if an attribute points outside the page.

    Example:
        ```python
        from hf_mote.reports.markup import tag

        assert tag("p", "a < b", class_="note") == '<p class="note">a &lt; b</p>'
        assert tag("p", tag("b", "bold"), None) == "<p><b>bold</b></p>"
        ```
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if (key in _REFERENCES or key.startswith("on")) and not str(value).startswith(_WITHIN):
            raise ValueError(f"the attribute {key} points outside the page: {str(value)[:60]!r}")
        parts.append(key if value is True else f'{key}="{html.escape(visible(str(value)), quote=True)}"')
    opened = f"<{' '.join(parts)}>"
    return Html(opened if name in _VOID else f"{opened}{join(children)}</{name}>")


def chip(label: str, target: str | None = None) -> Html:
    """Return the name of a class as a small box, which stands out if it is the class of interest.

    Args:
        label (`str`): The class.
        target (`str`, *optional*): The class of interest.
    """
    return tag("span", label, class_="chip target" if label == target else "chip")


def join(children: Iterable[Child], between: str = "") -> Html:
    """Return children one after the other; those that are not markup are escaped.

    Args:
        children (`Iterable[str | Html | None]`): What to join; `None` is left out.
        between (`str`, *optional*): Text between them.
    """
    return Html(
        html.escape(visible(between), quote=False).join(
            child if isinstance(child, Html) else html.escape(visible(child), quote=False)
            for child in children
            if child is not None
        )
    )


def data_block(identity: str, value: object) -> Html:
    """Return an element that holds data for the page's script; browsers do not run it.

    Args:
        identity (`str`): Its id.
        value (`object`): JSON-native; texts become what [`visible`] makes of them.

    Example:
        ```python
        from hf_mote.reports.markup import data_block

        assert "</script><b>" not in data_block("data", ["</script><b>"])
        ```
    """
    text = json.dumps(_visible_within(value), separators=(",", ":"), allow_nan=False)
    # Within a script element only "<" is special to a browser; the others are for older browsers.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{html.escape(identity)}">{text}</script>')


def _visible_within(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible_within(entry) for key, entry in value.items()}
    return [_visible_within(entry) for entry in value] if isinstance(value, list | tuple) else value


def visible(text: str) -> str:
    """Return a text whose control characters can be seen, and which UTF-8 can hold."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)
