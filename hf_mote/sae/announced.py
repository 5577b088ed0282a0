"""Registers the architectures of the package with `AutoConfig` before they are imported.

To register a class with transformers it must be imported, which takes seconds: torch, and the base of all models. So
`import hf_mote` only registers a placeholder for each config by its `model_type`. The first use of a placeholder by
transformers (to read a config from a file, to make one) imports `hf_mote.sae.variants`, where the architectures
replace the placeholders and register their models with `AutoModel`. `AutoModel.from_pretrained`
always begins with the config, and so finds the model.

While transformers itself is not imported, a finder on `sys.meta_path` waits for the one module of transformers that
holds the registry, and removes itself after its import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["ANNOUNCED", "StandIn", "announce_saes", "import_announced", "is_announced"]

ANNOUNCED = {
    "batch_topk_sae": "BatchTopKSAEConfig",
    "feature_choice_sae": "FeatureChoiceSAEConfig",
    "gated_sae": "GatedSAEConfig",
    "jumprelu_sae": "JumpReLUSAEConfig",
    "matryoshka_sae": "MatryoshkaSAEConfig",
    "mutual_choice_sae": "MutualChoiceSAEConfig",
    "relu_sae": "ReLUSAEConfig",
    "topk_sae": "TopKSAEConfig",
}

_VARIANTS = "hf_mote.sae.variants"
_REGISTRY = "transformers.models.auto.configuration_auto"


class StandIn(type):
    """The class of placeholders: calls and attributes are those of the config class that it replaces."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a config of the replaced class."""
        return _stood_for(cls)(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        """Return an attribute of the replaced class."""
        if name.startswith("__"):  # which Python and inspect read of every class
            raise AttributeError(name)
        return getattr(_stood_for(cls), name)


def announce_saes() -> None:
    """Register the architectures with `AutoConfig`, now or as soon as transformers is imported."""
    registry = sys.modules.get(_REGISTRY)
    if registry is not None and hasattr(registry, "AutoConfig"):
        _register(registry)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def import_announced() -> ModuleType:
    """Import the architectures, which register themselves, and return the module that holds them."""
    return importlib.import_module(_VARIANTS)


def is_announced(known: Any, config_class: type) -> bool:
    """Return whether an entry of a registry is the placeholder for a config class.

    Args:
        known (`Any`): What `CONFIG_MAPPING` holds under a `model_type`.
        config_class (`type`): The class that is to be registered in its place.
    """
    ours = config_class.__module__.startswith(f"{_VARIANTS}.")
    return isinstance(known, StandIn) and ours and known.__name__ == config_class.__name__


def _stood_for(stand_in: type) -> Any:
    return getattr(import_announced(), stand_in.__name__)


def _register(registry: ModuleType) -> None:
    known = registry.CONFIG_MAPPING
    for model_type, name in ANNOUNCED.items():
        if model_type not in known:
            registry.AutoConfig.register(model_type, StandIn(name, (), {"__module__": __name__}))


class _Finder(MetaPathFinder):
    """Waits for transformers' registry, lets the other finders find it, and registers after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the registry's spec with a loader that registers; `None` for any other module."""
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """Loads the registry by its own loader, restores that loader, and registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader creates."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException:
            announce_saes()  # for another try
            raise
        _register(module)
