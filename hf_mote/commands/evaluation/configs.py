"""The configs that are measured: of experts or latents, or a profile of a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.commands.bundles.loading import Serving
from hf_mote.commands.model import loaded_sae
from hf_mote.commands.verbosity import settle_progress
from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError

if TYPE_CHECKING:
    from hf_mote.evaluation.changes import Change
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.routing.sites.routed_model import RoutedModel
    from hf_mote.serving.client import ServerEngine

__all__ = ["config_and_prompts", "fitted", "of_experts", "read_changes", "read_config", "stimulated"]


def config_and_prompts(config: str, prompts: str | None, serving: Serving) -> tuple[str, str]:
    """Return the config and the prompts; with --profile the config is the server's, and there is one argument less.

    Args:
        config (`str`): The argument CONFIG.
        prompts (`str`, *optional*): The argument PROMPTS.
        serving (`Serving`): The server and its profile.

    Raises:
        [`ConfigError`]: if there is one argument too few or too many.
    """
    serving.check("a CONFIG")
    profile = serving.profile
    if profile is not None and prompts is not None:
        expected = "MODEL PROMPTS --server URL --profile NAME"
        raise ConfigError("--profile", "replaces CONFIG", got=f"CONFIG {config} too", expected=expected)
    if profile is not None:
        return profile, config
    if prompts is None:
        raise ConfigError("PROMPTS", "is missing", expected="MODEL CONFIG PROMPTS, or --profile instead of CONFIG")
    return config, prompts


def read_config(name: str, sae: str | None = None) -> Change:
    """Return a config of experts, or one of latents with its SAE.

    Args:
        name (`str`): A folder, a file or a Hub id.
        sae (`str`, *optional*): Folder or Hub id of the SAE, instead of the one that a steering config names.

    Raises:
        [`FileFormatError`]: if it holds neither.
    """
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.sae.steering import SteeringConfig

    def steering() -> Change:
        config = SteeringConfig.from_pretrained(name)
        settle_progress()
        return config.bind(None if sae is None else loaded_sae(sae))

    path = Path(name)
    if (path / SteeringConfig.file_name).is_file() or path.name == SteeringConfig.file_name:
        return steering()
    try:
        return MoTEConfig.from_pretrained(name)
    except HFMoTEError:
        if path.exists():
            raise
        try:  # a Hub repository may hold either
            return steering()
        except HFMoTEError:
            pass
        raise


def read_changes(
    config: str, against: str | None, *, sae: str | None, engine: ServerEngine | None, profile: str | None
) -> list[Change]:
    """Return the configs to measure, one or two.

    Args:
        config (`str`): The config; with a profile it is not read.
        against (`str`, *optional*): The second config.
        sae (`str`, *optional*): Folder or Hub id of the SAE, for configs of latents.
        engine (`ServerEngine`, *optional*): The server, if the model runs on one.
        profile (`str`, *optional*): The profile of the server to measure.

    Raises:
        [`UnknownNameError`]: if the server has no such profile.
        [`ConfigError`]: if an SAE is given and no config is of latents.
    """
    first = read_config(config, sae) if engine is None or profile is None else _known(engine, profile)
    changes = [first, *([] if against is None else [read_config(against, sae)])]
    if sae is not None and len(of_experts(changes)) == len(changes):
        raise ConfigError("--sae", "belongs to a steering config, and none is given", fix="Leave it out.")
    return changes


def of_experts(changes: Sequence[Change]) -> list[MoTEConfig]:
    """Return those of the given configs that change experts.

    Args:
        changes (`Sequence[Change]`): Configs of experts or latents.
    """
    from hf_mote.mote.config import MoTEConfig

    return [change for change in changes if isinstance(change, MoTEConfig)]


def fitted(changes: Sequence[Change], routed: RoutedModel, *, allow_other_weights: bool) -> list[Change]:
    """Return the same configs, checked against the model.

    Args:
        changes (`Sequence[Change]`): Configs of experts or latents.
        routed (`RoutedModel`): The model.
        allow_other_weights (`bool`): Whether configs of experts may be of a model with other weights.

    Raises:
        [`HFMoTEError`]: if one does not fit.
    """
    from hf_mote.evaluation.changes import check_change
    from hf_mote.mote.config import MoTEConfig

    if allow_other_weights:
        changes = [one.for_other_weights_of(routed) if isinstance(one, MoTEConfig) else one for one in changes]
    for change in changes:
        check_change(change, routed)
    return list(changes)


def stimulated(config: Change, routed: RoutedModel) -> MoTEConfig:
    """Return the config that stimulates the experts which another config suppresses, as `evaluate_both_ways` does.

    Args:
        config (`Change`): The config that suppresses experts.
        routed (`RoutedModel`): The model.

    Raises:
        [`ConfigError`]: if it is of latents, or suppresses nothing.
    """
    from hf_mote.evaluation.both_ways import stimulating
    from hf_mote.mote.config import MoTEConfig

    if not isinstance(config, MoTEConfig):
        fix = "Leave it out, or give a config of experts."
        raise ConfigError("--opposite", "stimulates experts, and the config is of latents", fix=fix)
    slots = {site.layer: site.top_k for site in routed.sites}
    return stimulating(config, slots, stimulate_weight="max")


def _known(engine: ServerEngine, profile: str) -> Change:
    known = engine.profiles
    if profile not in known:
        raise UnknownNameError.of("--profile", profile, known)
    return known[profile]
