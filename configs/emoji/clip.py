"""A CLIP of noisy emoji and their 3,647 names, for guidance by text."""

from ml_collections import ConfigDict

from configs import siblings
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    siblings.clip(config, n_iters=1500, text_length=104)
    config.data.dataset = "emoji_names"
    config.classifier.widen_factor = 2
    return config
