"""DDPM (Ho et al. 2020) on CelebA-HQ at 256 x 256."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.px256("celebahq")
    defaults.vp(config, continuous=False)
    defaults.ddpm_256(config)
    return config
