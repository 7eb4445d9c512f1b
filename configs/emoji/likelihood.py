"""Emoji, trained for the likelihood, at times drawn by importance."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.likelihood(config)
    return config
