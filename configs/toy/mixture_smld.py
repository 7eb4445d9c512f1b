"""SMLD (NCSN) on a Gaussian mixture: 50 noise levels, sampled by annealed Langevin steps."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.points("mixture")
    defaults.ve(config, continuous=False)
    config.model.num_scales = 50
    config.sampling.method = "pc"
    config.sampling.num_steps = 0
    config.sampling.predictor = "none"
    config.sampling.corrector = "ald"
    config.sampling.n_steps_each = 5
    config.eval.enable_bpd = False
    return config
