"""ScoreFlow's DDPM++ on ImageNet 32 x 32, VP SDE: folders `imagenet32_vp*`.

`_likelihood` is `--config.training.likelihood_weighting=True`, `_iw` with it
`--config.training.time=likelihood`.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.score_flow_imagenet32()
    defaults.vp(config, continuous=True)
    defaults.ddpmpp(config)
    defaults.score_flow(config)
    config.eval.bpd_num_repeats = 1
    return config
