"""Digits told apart: the network is told the class, and in one draw of ten is not."""

from ml_collections import ConfigDict

from configs import quickstart, siblings


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    siblings.classifier_free(config, num_labels=10)
    return config
