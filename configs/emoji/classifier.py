"""A classifier of noisy emoji by their group, that guides the scores of this folder."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.classifier(config, n_iters=600)
    return config
