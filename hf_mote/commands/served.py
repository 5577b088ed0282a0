"""A model that runs on a server, instead of one that is loaded here: `--server URL`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_mote.errors import ConfigError, ModelMismatchError

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.routing.sites.routed_model import RoutedModel
    from hf_mote.serving.client import ServerEngine

__all__ = ["API_KEY", "connect", "refuse_loading", "routed_there", "served_facts"]

API_KEY = "VLLM_API_KEY"
"""Environment variable that holds the server's key, for vLLM and for its clients here."""


def connect(url: str) -> ServerEngine:
    """Return a server with profiles; its key is read from the environment.

    Args:
        url (`str`): Its address.
    """
    from hf_mote.serving.client import ServerEngine

    return ServerEngine(url, api_key=os.environ.get(API_KEY) or None)


def refuse_loading(options: Mapping[str, object]) -> None:
    """Raise [`ConfigError`] if an option is given that needs a model that is loaded here.

    Args:
        options (`Mapping[str, object]`): Values by the names of the options; one that was not given is `None`,
            `False`, `"auto"` or empty.
    """
    for name, value in options.items():
        if value not in (None, False, "auto", [], ()):
            what = "is for a model that is loaded here, not for one on a server"
            raise ConfigError(name, what, got=value, fix="Leave it out, or leave --server out.")


def routed_there(subject: Subject, engine: ServerEngine) -> RoutedModel:
    """Return the server's model with its routers, which are found in the local part of the model.

    Args:
        subject (`Subject`): The result of `served_subject`.
        engine (`ServerEngine`): The server.

    Raises:
        [`ModelMismatchError`]: if MODEL is another model than the server's, so that its tokenizer would be wrong.
    """
    from hf_mote.routing.sites.fingerprint import check_fingerprint
    from hf_mote.routing.sites.routed_model import RoutedModel

    routed = RoutedModel(subject.model)
    try:
        check_fingerprint(engine.fingerprint, routed.fingerprint, routed.sites, where="MODEL")
    except ModelMismatchError as error:
        raise ModelMismatchError(
            f"MODEL {subject.name}",
            "is another model than the server's, and its tokenizer may be another, too",
            got=str(error)[:300],
            expected=engine.base_model,
            fix="Give the model that the server was started with.",
        ) from error
    return RoutedModel(subject.model, routed.sites, engine.fingerprint)


def served_facts(engine: ServerEngine) -> dict[str, str]:
    """Return facts of a server for the provenance of a run, by name.

    Args:
        engine (`ServerEngine`): The server.
    """
    return {"dtype": engine.dtype, "device": "the server's", "engine": f"vLLM, serving {engine.base_model}"}
