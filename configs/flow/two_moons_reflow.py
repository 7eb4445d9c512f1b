"""Reflow on two moons: pairs of noise and samples of a run of `flow/two_moons_rectified`."""

from ml_collections import ConfigDict

from configs.flow import two_moons_rectified


def get_config() -> ConfigDict:
    config = two_moons_rectified.get_config()
    config.training.coupling = "reflow"
    config.training.teacher = "runs/two_moons_rectified"
    config.training.teacher_steps = 5
    config.training.n_iters = config.optim.decay_steps = 1500
    config.training.snapshot_freq = 1500
    return config
