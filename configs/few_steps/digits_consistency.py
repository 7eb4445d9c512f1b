"""Consistency training on digits, without a teacher."""

from ml_collections import ConfigDict

from configs.few_steps import digits_distilled


def get_config() -> ConfigDict:
    config = digits_distilled.get_config()
    config.training.teacher = ""
    return config
