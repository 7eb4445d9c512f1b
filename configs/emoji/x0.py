"""Emoji, the network a prediction of the picture."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.x0(config)
    return config
