"""Consistency distillation on digits: the flow of a run of the quickstart, in EDM's clock."""

from ml_collections import ConfigDict

from configs import flows
from configs.digits import edm


def get_config() -> ConfigDict:
    config = edm.get_config()
    config.training.n_iters = 1500
    config.training.snapshot_freq = 1500
    flows.consistency(config)
    config.training.teacher = "runs/quickstart"
    config.model.embedding_type = "log_positional"
    return config
