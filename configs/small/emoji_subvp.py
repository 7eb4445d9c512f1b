"""The small reproduction on emoji: sub-VP."""

from ml_collections import ConfigDict

from configs.small import emoji_vp


def get_config() -> ConfigDict:
    config = emoji_vp.get_config()
    config.training.sde = "subvpsde"
    return config
