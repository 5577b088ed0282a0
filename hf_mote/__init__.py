"""Find the experts that a behaviour depends on and tune them at inference; sparse autoencoders as transformers models.

Importing this registers the sparse autoencoders with `AutoConfig` and `AutoModel`, and does nothing else.
"""

from hf_mote.errors import HFMoTEError
from hf_mote.ftri.ablation import ablate_experts
from hf_mote.ftri.attribution import attribute_experts
from hf_mote.ftri.choice_judge import ChoiceJudge
from hf_mote.ftri.evaluate import evaluate_mote
from hf_mote.ftri.imaging import ftri
from hf_mote.ftri.judges import RefusalJudge, RegexJudge
from hf_mote.ftri.language_judge import LanguageJudge
from hf_mote.ftri.lm_judge import LMJudge, ServerJudge
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.report import EvaluationReport
from hf_mote.ftri.result import FTRIResult
from hf_mote.ftri.search import ExpertSearch, search_experts
from hf_mote.hooks import Intervention
from hf_mote.mote.bake import bake_mote
from hf_mote.mote.baked_model import BakedModel
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.routing.discover import RouterSite, find_routers
from hf_mote.routing.maps import ActivationMap
from hf_mote.routing.record import RoutingRecord, record_routing
from hf_mote.routing.unknown import register_routers
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.convert import export_sae, load_sae
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.output import SAEOutput
from hf_mote.sae.register import register_sae
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
    "Organism",
    "ReLUSAEConfig",
    "ReLUSAEModel",
    "RefusalJudge",
    "RegexJudge",
    "RouterSite",
    "RoutingRecord",
    "SAEConfig",
    "SAEModel",
    "SAEOutput",
    "ServerJudge",
    "TopKSAEConfig",
    "TopKSAEModel",
    "__version__",
    "ablate_experts",
    "apply_mote",
    "attribute_experts",
    "bake_mote",
    "evaluate_mote",
    "export_sae",
    "find_routers",
    "ftri",
    "load_organism",
    "load_sae",
    "record_routing",
    "register_routers",
    "register_sae",
    "search_experts",
]
