"""A CLIP of noisy clothes and their captions, for guidance by text; trained as any network."""

from ml_collections import ConfigDict

from configs.fashion_mnist import score


def get_config() -> ConfigDict:
    config = score.get_config()

    training = config.training
    training.objective = "clip"
    training.batch_size = 128
    training.n_iters = 600
    training.eval_freq = 200
    training.snapshot_freq = 600
    training.snapshot_freq_for_preemption = 200

    config.model.ema_rate = 0.995
    config.optim.decay_steps = 600

    config.eval.enable_sampling = False
    config.eval.enable_bpd = False
    return config
