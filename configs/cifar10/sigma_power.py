"""DDPM++ on CIFAR-10, the SDE dx = 25^t dw."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.sigma_power(config)
    return config
