"""Networks: Linen modules from (x [B, H, W, C], labels [B]) to [B, H, W, C].

    params = models.init(module, key, image_shape)
    out = module.apply({"params": params}, x, labels, dropout_keys=None)

`labels` are noise levels, times or indices, as `models.score_fn` gives them; `dropout_keys [B]`,
one key per image, mean training, None evaluation.
"""

from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.build import (
    MODELS,
    constraint,
    from_config,
    init,
)
from models.build_guides import classifier_from_config, clip_from_config
from models.classifier import NoisyClassifier
from models.clip import CLIP
from models.ddpm import DDPM
from models.edm2 import EDM2
from models.flow_maps import flow_map
from models.mlp import MLP
from models.ncsn import NCSN, NCSNv2
from models.ncsnpp import NCSNpp
from models.objectives import (
    CLASSIFIER,
    CLIP_OBJECTIVE,
    FLOW_MAPS,
    GUIDES,
    MEAN_FLOW,
    has_samples,
    has_score,
)
from models.score import (
    class_log_prob,
    continuous_labels,
    denoiser,
    discrete_labels,
    score_and_variance,
    score_fn,
)
from models.two_times import TwoTimes
from models.wide_resnet import WideResNet

__all__ = [
    "ADM",
    "CLASSIFIER",
    "CLIP",
    "CLIP_OBJECTIVE",
    "DDPM",
    "EDM2",
    "FLOW_MAPS",
    "GUIDES",
    "MEAN_FLOW",
    "MLP",
    "MODELS",
    "NCSN",
    "ADMClassifier",
    "NCSNpp",
    "NCSNv2",
    "NoisyClassifier",
    "TwoTimes",
    "WideResNet",
    "class_log_prob",
    "classifier_from_config",
    "clip_from_config",
    "constraint",
    "continuous_labels",
    "denoiser",
    "discrete_labels",
    "flow_map",
    "from_config",
    "has_samples",
    "has_score",
    "init",
    "score_and_variance",
    "score_fn",
]
