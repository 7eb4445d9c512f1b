"""DDPM++ on CIFAR-10, VP SDE with the cosine schedule."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.cosine_vp(config)
    return config
