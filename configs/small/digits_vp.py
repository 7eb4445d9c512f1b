"""The small reproduction on digits: VP."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """A third of the quickstart's network, of which many can be trained, on a falling rate."""
    config = quickstart.get_config()
    config.training.n_iters = 1200
    config.training.snapshot_freq = 1200
    config.training.eval_freq = 1200
    config.training.log_freq = 100
    config.model.nf = 16
    config.model.ch_mult = (1, 2)
    config.optim.schedule = "cosine"
    config.optim.decay_steps = 1200
    config.sampling.num_frames = 0
    config.sampling.batch_size = 500
    return config
