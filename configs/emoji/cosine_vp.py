"""Emoji, VP SDE with the cosine schedule."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.cosine_vp(config)
    return config
