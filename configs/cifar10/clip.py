"""A CLIP of noisy CIFAR-10 and captions of its classes, for guidance by text."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.clip(config, n_iters=100000)
    return config
