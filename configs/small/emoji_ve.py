"""The small reproduction on emoji: VE."""

from ml_collections import ConfigDict

from configs.small import emoji_vp


def get_config() -> ConfigDict:
    """sigma_max is the largest distance between two training images (arXiv:2006.09011)."""
    config = emoji_vp.get_config()
    config.training.sde = "vesde"
    config.data.centered = False
    config.model.sigma_max = 36.0
    config.model.scale_by_sigma = True
    config.model.embedding_type = "fourier"
    return config
