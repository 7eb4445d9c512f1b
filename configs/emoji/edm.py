"""Emoji, EDM's training: preconditioning, log-normal noise levels, their weighting."""

from ml_collections import ConfigDict

from configs import defaults
from configs.emoji import vp


def get_config() -> ConfigDict:
    config = vp.get_config()
    defaults.edm_training(config, sigma_data=0.6)
    return config
