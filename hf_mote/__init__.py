"""Find the experts that a behaviour depends on and tune them at inference; sparse autoencoders as transformers models.

Importing this registers the sparse autoencoders with `AutoConfig` and `AutoModel`, and does nothing else.
"""

from hf_mote.errors import HFMoTEError
from hf_mote.evaluation.evaluate import evaluate_mote
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.generation.grid import PromptGrid, prompt_grid
from hf_mote.hooks import Intervention
from hf_mote.judges.choice import ChoiceJudge
from hf_mote.judges.language import LanguageJudge
from hf_mote.judges.language_model import LMJudge
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge
from hf_mote.judges.server import ServerJudge
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.mote.bake import bake_mote
from hf_mote.mote.baked_model import BakedModel
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.ranking.causal.ablation import ablate_experts
from hf_mote.ranking.causal.attribution import attribute_experts
from hf_mote.ranking.causal.optimization import optimize_experts
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.causal.search import ExpertSearch, search_experts
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.pipeline import ftri
from hf_mote.ranking.imaging.result import FTRIResult
from hf_mote.routing.recording.record import RoutingRecord, record_routing
from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.unlisted.register import register_routers
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.convert import export_sae, load_sae
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import SAEOutput
from hf_mote.sae.register import register_sae
from hf_mote.sae.training.activations import collect_activations
from hf_mote.sae.training.trainer import SAETrainer, SAETrainingArguments
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
from hf_mote.version import __version__

__all__ = [
    "ActivationMap",
    "BakedModel",
    "BatchTopKSAEConfig",
    "BatchTopKSAEModel",
    "ChoiceJudge",
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
    "MatryoshkaSAEConfig",
    "MatryoshkaSAEModel",
    "MoTEConfig",
    "MutualChoiceSAEConfig",
    "MutualChoiceSAEModel",
    "OptimizedRanking",
    "Organism",
    "PromptGrid",
    "ReLUSAEConfig",
    "ReLUSAEModel",
    "RefusalJudge",
    "RegexJudge",
    "RouterSite",
    "RoutingRecord",
    "SAEConfig",
    "SAEModel",
    "SAEOutput",
    "SAETrainer",
    "SAETrainingArguments",
    "ServerJudge",
    "TopKSAEConfig",
    "TopKSAEModel",
    "__version__",
    "ablate_experts",
    "apply_mote",
    "attribute_experts",
    "bake_mote",
    "collect_activations",
    "evaluate_mote",
    "export_sae",
    "find_routers",
    "ftri",
    "load_organism",
    "load_sae",
    "optimize_experts",
    "prompt_grid",
    "record_routing",
    "register_routers",
    "register_sae",
    "search_experts",
]
