"""The architectures by `model_type`, and their registration with AutoConfig and AutoModel."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from hf_mote.errors import ConfigError, UnknownNameError
from hf_mote.sae.announced import import_announced, is_announced
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.modeling import SAEModel

__all__ = ["register_sae", "registered_saes", "sae_class"]

_MODELS: dict[str, type[SAEModel]] = {}


def register_sae(model_class: type[SAEModel]) -> type[SAEModel]:
    """Register an architecture with `AutoConfig`, `AutoModel` and this package; usable as a class decorator.

    Args:
        model_class (`type[SAEModel]`): With a `config_class` whose `model_type` is its own.

    Returns:
        The class itself.

    Raises:
        [`ConfigError`]: if the `model_type` is taken, or the class is not an SAE with its own config.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, SAEModel)):
        raise ConfigError(
            "register_sae", "must be an architecture", got=model_class, expected="a subclass of SAEModel"
        )
    config_class = model_class.config_class
    where = f"register_sae({model_class.__name__})"
    if not (isinstance(config_class, type) and issubclass(config_class, SAEConfig)) or config_class is SAEConfig:
        raise ConfigError(where, "has no config of its own", got=config_class, expected="a subclass of SAEConfig")
    name = config_class.model_type
    if name == SAEConfig.model_type:
        raise ConfigError(where, f"{config_class.__name__} has no model_type of its own", got=repr(name))
    taken = name in CONFIG_MAPPING and not is_announced(CONFIG_MAPPING[name], config_class)
    if taken or name in _MODELS:
        raise ConfigError(where, "model_type is taken", got=repr(name), fix="Choose a distinctive name.")
    AutoConfig.register(name, config_class)
    AutoModel.register(config_class, model_class)
    _MODELS[name] = model_class
    return model_class


def registered_saes() -> dict[str, type[SAEModel]]:
    """Return the registered architectures by `model_type`."""
    import_announced()
    return dict(_MODELS)


def sae_class(model_type: str) -> type[SAEModel]:
    """Return the architecture of a `model_type`.

    Raises:
        [`UnknownNameError`]: if it is unknown, listing the known ones.
    """
    import_announced()
    if model_type not in _MODELS:
        raise UnknownNameError.of("model_type", model_type, _MODELS)
    return _MODELS[model_type]
