"""Emoji of a group, or of none: the group is told, in one draw of ten not."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.classifier_free(config, num_labels=9)
    return config
