"""DDPM (Ho et al. 2020) on CIFAR-10, as published."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.vp(config, continuous=False)
    defaults.ddpm(config)
    return config
