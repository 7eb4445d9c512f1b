"""NCSN++ on CIFAR-10, VP with 1000 discrete noise levels."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.vp(config, continuous=False)
    defaults.ncsnpp(config)
    config.sampling.predictor = "reverse_diffusion"
    return config
