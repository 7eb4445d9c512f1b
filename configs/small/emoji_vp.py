"""The small reproduction on emoji: VP."""

from ml_collections import ConfigDict

from configs.emoji import vp


def get_config() -> ConfigDict:
    """The network of `configs/emoji/vp.py` with two thirds of its channels, that predicts noise."""
    config = vp.get_config()
    config.training.n_iters = 1000
    config.training.snapshot_freq = 1000
    config.training.eval_freq = 1000
    config.training.log_freq = 100
    config.training.weighting = ""
    config.model.prediction = ""
    config.model.nf = 16
    config.optim.decay_steps = 1000
    config.sampling.num_frames = 0
    config.sampling.batch_size = 100
    config.eval.bpd_num_images = 100
    config.eval.bpd_rtol = 1e-3
    config.eval.bpd_atol = 1e-3
    return config
