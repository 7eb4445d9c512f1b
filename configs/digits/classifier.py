"""A classifier of noisy digits, for guidance; `--mode=train` trains it like any network."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.training.objective = "classifier"
    config.training.n_iters = 600
    config.eval.enable_sampling = False
    config.eval.enable_bpd = False
    return config
