"""A classifier of noisy points: which Gaussian of the mixture they come from."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.vp(config, continuous=True)
    config.training.objective = "classifier"
    config.classifier.num_classes = 4
    config.classifier.widen_factor = 6
    config.classifier.blocks_per_group = 3
    config.eval.enable_sampling = False
    config.eval.enable_bpd = False
    return config
