"""Find the experts that a behaviour depends on, and tune them at inference: fTRI and MoTE for transformers models."""

from hf_mote.errors import HFMoTEError
from hf_mote.ftri.attribution import attribute_experts
from hf_mote.ftri.evaluate import evaluate_mote
from hf_mote.ftri.imaging import ftri
from hf_mote.ftri.judges import RefusalJudge, RegexJudge
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.report import EvaluationReport
from hf_mote.ftri.result import FTRIResult
from hf_mote.hooks import Intervention
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.routing.discover import RouterSite, find_routers
from hf_mote.routing.maps import ActivationMap
from hf_mote.routing.record import RoutingRecord, record_routing
from hf_mote.version import __version__

__all__ = [
    "ActivationMap",
    "EvaluationReport",
    "ExpertRanking",
    "FTRIResult",
    "HFMoTEError",
    "Intervention",
    "MoTEConfig",
    "Organism",
    "RefusalJudge",
    "RegexJudge",
    "RouterSite",
    "RoutingRecord",
    "__version__",
    "apply_mote",
    "attribute_experts",
    "evaluate_mote",
    "find_routers",
    "ftri",
    "load_organism",
    "record_routing",
]
