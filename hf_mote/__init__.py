"""Find the experts that a behaviour depends on and tune them at inference; sparse autoencoders as transformers models.

Importing the package loads neither torch nor transformers: a name is imported from its module on first use. The sparse
autoencoders are known to `AutoConfig` and `AutoModel` nevertheless, see `hf_mote.sae.announced`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

from hf_mote.errors import HFMoTEError
from hf_mote.sae.announced import announce_saes as _announce_saes
from hf_mote.version import __version__

if TYPE_CHECKING:
    from hf_mote.evaluation.both_ways import evaluate_both_ways
    from hf_mote.evaluation.evaluate import evaluate_mote
    from hf_mote.evaluation.model_check import ModelCheck, check_model
    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.evaluation.sweep import sweep_mote
    from hf_mote.generation.grid import PromptGrid, prompt_grid
    from hf_mote.hooks import Intervention
    from hf_mote.judges.choice import ChoiceJudge
    from hf_mote.judges.language import LanguageJudge
    from hf_mote.judges.language_model import LMJudge
    from hf_mote.judges.refusal import RefusalJudge
    from hf_mote.judges.regex import RegexJudge
    from hf_mote.judges.server import ServerJudge
    from hf_mote.links.latent_expert_map import LatentExpertMap
    from hf_mote.links.link import link_latents
    from hf_mote.maps.activation_map import ActivationMap
    from hf_mote.mote.bake import bake_mote
    from hf_mote.mote.baked_model import BakedModel
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.mote.patch import apply_mote
    from hf_mote.mote.tunable import TunableMoTE, tunable_mote
    from hf_mote.organisms.organism import Organism, load_organism
    from hf_mote.ranking.causal.ablation import ablate_experts
    from hf_mote.ranking.causal.attribution import attribute_experts
    from hf_mote.ranking.causal.counterfactual import CounterfactualRoutes, counterfactual_routes
    from hf_mote.ranking.causal.optimization import optimize_experts
    from hf_mote.ranking.causal.optimized import OptimizedRanking
    from hf_mote.ranking.causal.patching import PatchedLayers, patch_experts, patch_layers
    from hf_mote.ranking.causal.search import ExpertSearch, search_experts
    from hf_mote.ranking.causal.subsets import random_subsets
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.ranking.imaging.pipeline import ftri
    from hf_mote.ranking.imaging.result import FTRIResult
    from hf_mote.routing.recording.record import RoutingRecord, record_routing
    from hf_mote.routing.sites.discover import find_routers
    from hf_mote.routing.sites.site import RouterSite
    from hf_mote.routing.unlisted.register import register_routers
    from hf_mote.sae.configuration import SAEConfig
    from hf_mote.sae.convert import SAELayout, export_sae, list_saes, load_sae
    from hf_mote.sae.intervene import splice_sae
    from hf_mote.sae.metrics import evaluate_sae
    from hf_mote.sae.modeling import SAEModel
    from hf_mote.sae.output import SAEOutput
    from hf_mote.sae.register import register_sae
    from hf_mote.sae.report import SAEReport
    from hf_mote.sae.steer import steer
    from hf_mote.sae.steering import SteeringConfig
    from hf_mote.sae.training.activations import collect_activations
    from hf_mote.sae.training.adapt import adapt_to_sae
    from hf_mote.sae.training.arguments import SAETrainingArguments
    from hf_mote.sae.training.trainer import SAETrainer
    from hf_mote.sae.variants import (
        BatchTopKSAEConfig,
        BatchTopKSAEModel,
        FeatureChoiceSAEConfig,
        FeatureChoiceSAEModel,
        GatedSAEConfig,
        GatedSAEModel,
        JumpReLUSAEConfig,
        JumpReLUSAEModel,
        MatryoshkaSAEConfig,
        MatryoshkaSAEModel,
        MutualChoiceSAEConfig,
        MutualChoiceSAEModel,
        ReLUSAEConfig,
        ReLUSAEModel,
        TopKSAEConfig,
        TopKSAEModel,
    )
    from hf_mote.serving.client import ServerEngine
    from hf_mote.serving.engine import VLLMEngine

__all__ = [
    "ActivationMap",
    "BakedModel",
    "BatchTopKSAEConfig",
    "BatchTopKSAEModel",
    "ChoiceJudge",
    "CounterfactualRoutes",
    "EvaluationReport",
    "ExpertRanking",
    "ExpertSearch",
    "FTRIResult",
    "FeatureChoiceSAEConfig",
    "FeatureChoiceSAEModel",
    "GatedSAEConfig",
    "GatedSAEModel",
    "HFMoTEError",
    "Intervention",
    "JumpReLUSAEConfig",
    "JumpReLUSAEModel",
    "LMJudge",
    "LanguageJudge",
    "LatentExpertMap",
    "MatryoshkaSAEConfig",
    "MatryoshkaSAEModel",
    "MoTEConfig",
    "ModelCheck",
    "MutualChoiceSAEConfig",
    "MutualChoiceSAEModel",
    "OptimizedRanking",
    "Organism",
    "PatchedLayers",
    "PromptGrid",
    "ReLUSAEConfig",
    "ReLUSAEModel",
    "RefusalJudge",
    "RegexJudge",
    "RouterSite",
    "RoutingRecord",
    "SAEConfig",
    "SAELayout",
    "SAEModel",
    "SAEOutput",
    "SAEReport",
    "SAETrainer",
    "SAETrainingArguments",
    "ServerEngine",
    "ServerJudge",
    "SteeringConfig",
    "TopKSAEConfig",
    "TopKSAEModel",
    "TunableMoTE",
    "VLLMEngine",
    "__version__",
    "ablate_experts",
    "adapt_to_sae",
    "apply_mote",
    "attribute_experts",
    "bake_mote",
    "check_model",
    "collect_activations",
    "counterfactual_routes",
    "evaluate_both_ways",
    "evaluate_mote",
    "evaluate_sae",
    "export_sae",
    "find_routers",
    "ftri",
    "link_latents",
    "list_saes",
    "load_organism",
    "load_sae",
    "optimize_experts",
    "patch_experts",
    "patch_layers",
    "prompt_grid",
    "random_subsets",
    "record_routing",
    "register_routers",
    "register_sae",
    "search_experts",
    "splice_sae",
    "steer",
    "sweep_mote",
    "tunable_mote",
]

# Where each name is, but for those imported above. A new public name is a line here, in TYPE_CHECKING and in __all__.
_PLACES = {
    "ActivationMap": "hf_mote.maps.activation_map",
    "BakedModel": "hf_mote.mote.baked_model",
    "BatchTopKSAEConfig": "hf_mote.sae.variants",
    "BatchTopKSAEModel": "hf_mote.sae.variants",
    "ChoiceJudge": "hf_mote.judges.choice",
    "CounterfactualRoutes": "hf_mote.ranking.causal.counterfactual",
    "EvaluationReport": "hf_mote.evaluation.report",
    "ExpertRanking": "hf_mote.ranking.expert_ranking",
    "ExpertSearch": "hf_mote.ranking.causal.search",
    "FTRIResult": "hf_mote.ranking.imaging.result",
    "FeatureChoiceSAEConfig": "hf_mote.sae.variants",
    "FeatureChoiceSAEModel": "hf_mote.sae.variants",
    "GatedSAEConfig": "hf_mote.sae.variants",
    "GatedSAEModel": "hf_mote.sae.variants",
    "Intervention": "hf_mote.hooks",
    "JumpReLUSAEConfig": "hf_mote.sae.variants",
    "JumpReLUSAEModel": "hf_mote.sae.variants",
    "LMJudge": "hf_mote.judges.language_model",
    "LanguageJudge": "hf_mote.judges.language",
    "LatentExpertMap": "hf_mote.links.latent_expert_map",
    "MatryoshkaSAEConfig": "hf_mote.sae.variants",
    "MatryoshkaSAEModel": "hf_mote.sae.variants",
    "MoTEConfig": "hf_mote.mote.config",
    "ModelCheck": "hf_mote.evaluation.model_check",
    "MutualChoiceSAEConfig": "hf_mote.sae.variants",
    "MutualChoiceSAEModel": "hf_mote.sae.variants",
    "OptimizedRanking": "hf_mote.ranking.causal.optimized",
    "Organism": "hf_mote.organisms.organism",
    "PatchedLayers": "hf_mote.ranking.causal.patching",
    "PromptGrid": "hf_mote.generation.grid",
    "ReLUSAEConfig": "hf_mote.sae.variants",
    "ReLUSAEModel": "hf_mote.sae.variants",
    "RefusalJudge": "hf_mote.judges.refusal",
    "RegexJudge": "hf_mote.judges.regex",
    "RouterSite": "hf_mote.routing.sites.site",
    "RoutingRecord": "hf_mote.routing.recording.record",
    "SAEConfig": "hf_mote.sae.configuration",
    "SAELayout": "hf_mote.sae.convert",
    "SAEModel": "hf_mote.sae.modeling",
    "SAEOutput": "hf_mote.sae.output",
    "SAEReport": "hf_mote.sae.report",
    "SAETrainer": "hf_mote.sae.training.trainer",
    "SAETrainingArguments": "hf_mote.sae.training.arguments",
    "ServerEngine": "hf_mote.serving.client",
    "ServerJudge": "hf_mote.judges.server",
    "SteeringConfig": "hf_mote.sae.steering",
    "TopKSAEConfig": "hf_mote.sae.variants",
    "TopKSAEModel": "hf_mote.sae.variants",
    "TunableMoTE": "hf_mote.mote.tunable",
    "VLLMEngine": "hf_mote.serving.engine",
    "ablate_experts": "hf_mote.ranking.causal.ablation",
    "adapt_to_sae": "hf_mote.sae.training.adapt",
    "apply_mote": "hf_mote.mote.patch",
    "attribute_experts": "hf_mote.ranking.causal.attribution",
    "bake_mote": "hf_mote.mote.bake",
    "check_model": "hf_mote.evaluation.model_check",
    "collect_activations": "hf_mote.sae.training.activations",
    "counterfactual_routes": "hf_mote.ranking.causal.counterfactual",
    "evaluate_both_ways": "hf_mote.evaluation.both_ways",
    "evaluate_mote": "hf_mote.evaluation.evaluate",
    "evaluate_sae": "hf_mote.sae.metrics",
    "export_sae": "hf_mote.sae.convert",
    "find_routers": "hf_mote.routing.sites.discover",
    "ftri": "hf_mote.ranking.imaging.pipeline",
    "link_latents": "hf_mote.links.link",
    "list_saes": "hf_mote.sae.convert",
    "load_organism": "hf_mote.organisms.organism",
    "load_sae": "hf_mote.sae.convert",
    "optimize_experts": "hf_mote.ranking.causal.optimization",
    "patch_experts": "hf_mote.ranking.causal.patching",
    "patch_layers": "hf_mote.ranking.causal.patching",
    "prompt_grid": "hf_mote.generation.grid",
    "random_subsets": "hf_mote.ranking.causal.subsets",
    "record_routing": "hf_mote.routing.recording.record",
    "register_routers": "hf_mote.routing.unlisted.register",
    "register_sae": "hf_mote.sae.register",
    "search_experts": "hf_mote.ranking.causal.search",
    "splice_sae": "hf_mote.sae.intervene",
    "steer": "hf_mote.sae.steer",
    "sweep_mote": "hf_mote.evaluation.sweep",
    "tunable_mote": "hf_mote.mote.tunable",
}

if not TYPE_CHECKING:  # or a type checker would take any name for one that exists

    def __getattr__(name: str) -> object:
        """Import a public name, or a part of the package, on first use."""
        if name in _PLACES:
            value = getattr(importlib.import_module(_PLACES[name]), name)
            globals()[name] = value
            return value
        part = f"{__name__}.{name}"
        if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(part) is not None:
            return importlib.import_module(part)
        # With the module, so that Python says which name may be meant.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_announce_saes()
