"""ScoreFlow's DDPM++ on CIFAR-10, sub-VP SDE: folders `cifar10_subvp*`.

`_likelihood` is `--config.training.likelihood_weighting=True`, `_iw` with it
`--config.training.time=likelihood`.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.cifar10()
    defaults.subvp(config)
    defaults.ddpmpp(config)
    defaults.score_flow(config)
    return config
