"""Emoji, the SDE dx = 25^t dw."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.sigma_power(config)
    return config
