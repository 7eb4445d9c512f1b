"""DDPM on CIFAR-10 with a network that is not told the noise level."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.vp(config, continuous=False)
    defaults.ddpm(config)
    config.model.conditional = False
    return config
