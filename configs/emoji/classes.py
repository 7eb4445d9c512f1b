"""Emoji of a group: the small DDPM++, told the group of every picture."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.class_conditional(config, num_labels=9)
    return config
