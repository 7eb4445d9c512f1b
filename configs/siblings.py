"""Siblings of a config: one change to a run of the VP SDE, the same for every data set.

Each function takes a config whose data set, network and schedule are chosen, and sets what is its
own: what the network predicts, what it is told, how errors count, or another SDE.
"""

from ml_collections import ConfigDict

from configs import defaults


def class_conditional(config: ConfigDict, num_labels: int) -> None:
    """The network is told the class of every image; samples are of classes, too."""
    config.model.num_labels = num_labels


def classifier_free(config: ConfigDict, num_labels: int) -> None:
    """The class is withheld from one image in ten, so that one network is both of the scores of
    classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""
    class_conditional(config, num_labels)
    config.training.label_dropout = 0.1


def classifier(config: ConfigDict, n_iters: int) -> None:
    """A classifier of noisy images, whose gradient guides a score to a class (Song et al. 2021,
    arXiv:2011.13456, section 5)."""
    config.training.objective = "classifier"
    config.training.n_iters = n_iters
    config.training.snapshot_freq = n_iters
    config.optim.schedule = "cosine"
    config.optim.decay_steps = n_iters
    config.model.prediction = ""
    config.training.weighting = ""
    config.eval.enable_sampling = False
    config.eval.enable_bpd = False


def clip(config: ConfigDict, n_iters: int, text_length: int = 48) -> None:
    """A CLIP of noisy images and their captions, for guidance by text."""
    classifier(config, n_iters)
    config.training.objective = "clip"
    config.training.batch_size = 128
    config.clip.text_length = text_length


def velocity(config: ConfigDict) -> None:
    """The network predicts alpha noise - sigma x_0, whose error counts as it is (Salimans and Ho
    2022, arXiv:2202.00512)."""
    config.training.weighting = "velocity"
    config.model.prediction = "velocity"
    config.model.scale_by_sigma = False


def x0(config: ConfigDict) -> None:
    """The network predicts the image; its error counts as that of the velocity."""
    velocity(config)
    config.model.prediction = "x0"


def likelihood(config: ConfigDict) -> None:
    """Score flow's training for the likelihood (Song et al. 2021, arXiv:2101.09258): weights g^2,
    times drawn in proportion to g^2 / sigma^2, so that the errors of the noise count alike."""
    config.training.weighting = ""
    config.training.likelihood_weighting = True
    config.training.time = "likelihood"
    config.training.time_draws = "stratified"
    config.model.prediction = ""
    config.eval.enable_bpd = True


def cosine_vp(config: ConfigDict) -> None:
    """The cosine schedule of Nichol and Dhariwal (2021), arXiv:2102.09672; the velocity, since the
    noise says nothing of the image where alpha is next to 0."""
    defaults.cosine_vp(config, continuous=True)
    velocity(config)


def sigma_power(config: ConfigDict) -> None:
    """`dx = 25^t dw`, the SDE of the paper's tutorial: pixels in [0, 1], the network divided by
    sigma."""
    defaults.ve(config, continuous=True)
    config.training.sde = "sigma_power"
    config.training.weighting = ""
    config.data.centered = False
    config.model.prediction = ""
    config.model.embedding_type = "fourier"
