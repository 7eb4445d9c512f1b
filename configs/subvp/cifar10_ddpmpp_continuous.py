"""DDPM++ on CIFAR-10, sub-VP SDE."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.subvp(config)
    defaults.ddpmpp(config)
    return config
