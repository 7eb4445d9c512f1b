"""Consistency distillation on two moons: the flow of a run of `toy/two_moons_edm`."""

from ml_collections import ConfigDict

from configs.few_steps import two_moons_consistency


def get_config() -> ConfigDict:
    config = two_moons_consistency.get_config()
    config.training.teacher = "runs/two_moons_edm"
    config.training.tangent_norm = 1.0  # a flow's tangents have no variance to bias
    return config
