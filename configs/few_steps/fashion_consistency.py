"""Consistency training on Fashion-MNIST with a small NCSN++."""

from ml_collections import ConfigDict

from configs import defaults, flows
from configs.fashion_mnist import score


def get_config() -> ConfigDict:
    config = score.get_config()
    defaults.edm_training(config, sigma_data=0.7)
    flows.consistency(config)
    config.model.embedding_type = "log_positional"
    return config
