"""DDPM++ on CIFAR-10 that is told the class of every image."""

from ml_collections import ConfigDict

from configs import siblings
from configs.vp import cifar10_ddpmpp_continuous


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_continuous.get_config()
    siblings.class_conditional(config, num_labels=10)
    return config
