"""The architectures, one file each; importing this registers them with AutoConfig and AutoModel.

- `relu.py`, `gated.py` and `jumprelu.py`: each latent is decided separately.
- `topk.py`, `batch_topk.py` and `matryoshka.py`: the largest latents of a token or of a batch.
- `feature_choice.py` and `mutual_choice.py`: latents that choose their tokens, and both at once.
- `bases/`: shared bases.

May import `sae` and `sae/kernels`. A new architecture is a file here (a config with a `model_type` of its
own, and a model), its import, name and registration below, and a line in `sae/announced.py`.
"""

from hf_mote.sae.register import register_sae
from hf_mote.sae.variants.batch_topk import BatchTopKSAEConfig, BatchTopKSAEModel
from hf_mote.sae.variants.feature_choice import FeatureChoiceSAEConfig, FeatureChoiceSAEModel
from hf_mote.sae.variants.gated import GatedSAEConfig, GatedSAEModel
from hf_mote.sae.variants.jumprelu import JumpReLUSAEConfig, JumpReLUSAEModel
from hf_mote.sae.variants.matryoshka import MatryoshkaSAEConfig, MatryoshkaSAEModel
from hf_mote.sae.variants.mutual_choice import MutualChoiceSAEConfig, MutualChoiceSAEModel
from hf_mote.sae.variants.relu import ReLUSAEConfig, ReLUSAEModel
from hf_mote.sae.variants.topk import TopKSAEConfig, TopKSAEModel

__all__ = [
    "BatchTopKSAEConfig",
    "BatchTopKSAEModel",
    "FeatureChoiceSAEConfig",
    "FeatureChoiceSAEModel",
    "GatedSAEConfig",
    "GatedSAEModel",
    "JumpReLUSAEConfig",
    "JumpReLUSAEModel",
    "MatryoshkaSAEConfig",
    "MatryoshkaSAEModel",
    "MutualChoiceSAEConfig",
    "MutualChoiceSAEModel",
    "ReLUSAEConfig",
    "ReLUSAEModel",
    "TopKSAEConfig",
    "TopKSAEModel",
]

for _model_class in (
    ReLUSAEModel,
    GatedSAEModel,
    TopKSAEModel,
    BatchTopKSAEModel,
    JumpReLUSAEModel,
    MatryoshkaSAEModel,
    FeatureChoiceSAEModel,
    MutualChoiceSAEModel,
):
    register_sae(_model_class)
