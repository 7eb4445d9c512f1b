"""DDPM++ on CIFAR-10, its network a prediction of the image."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.x0(config)
    return config
