"""The small reproduction on Fashion-MNIST: VE."""

from ml_collections import ConfigDict

from configs.small import fashion_vp


def get_config() -> ConfigDict:
    """sigma_max is the largest distance between two training images (arXiv:2006.09011)."""
    config = fashion_vp.get_config()
    config.training.sde = "vesde"
    config.data.centered = False
    config.model.sigma_max = 21.0
    config.model.scale_by_sigma = True
    config.model.embedding_type = "fourier"
    return config
