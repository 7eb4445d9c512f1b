"""DDPM++ on CIFAR-10, trained for the likelihood, at times drawn by importance."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.likelihood(config)
    return config
