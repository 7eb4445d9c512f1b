"""The official classifier of noisy CIFAR-10, for VE: the file in `cifar10_classifier`."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.ve(config, continuous=True)
    defaults.ncsnpp(config, embedding_type="fourier")
    config.training.objective = "classifier"
    config.classifier.name = "wrn_score_sde"
    config.eval.enable_sampling = False
    return config
