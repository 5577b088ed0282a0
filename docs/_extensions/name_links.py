"""Links `apply_mote` and the like, written as code on any page, to the reference."""

from __future__ import annotations

from api_pages import public_targets
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link_names(app: Sphinx, tree: nodes.document) -> None:
    targets = public_targets()
    for literal in list(tree.findall(nodes.literal)):
        name = literal.astext()
        called = name.partition("(")[0] if name.endswith(")") else name
        within = nodes.title, nodes.reference, pending_xref
        if called not in targets or any(isinstance(parent, within) for parent in _parents(literal)):
            continue
        where = {"reftype": "obj", "reftarget": targets[called], "refexplicit": True, "refwarn": True}
        link = pending_xref("", refdomain="py", **where)
        link["refdoc"] = app.env.docname
        literal.replace_self(link)
        link += literal


def _parents(node: nodes.Element) -> list[nodes.Element]:
    parents = []
    while node.parent is not None:
        node = node.parent
        parents.append(node)
    return parents
