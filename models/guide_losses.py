"""Losses of guides: networks of noisy images that tell what is in them, and so guide a score.

A classifier's minimiser is the posterior p_t(y | x_t) of the class; a CLIP's is, up to terms that
guidance does not see, log p_t(x | text) / p_t(x). Their gradients in x are added to the score.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from diffusion import training_draws
from diffusion.times import times_from_config
from diffusion.weighting import Losses, refuse_weighting
from models.score import Network, class_log_prob, continuous_labels
from sde_lib import SDE, AnyArray, Images, Keys, Times, batch_mul

Classes = Int[AnyArray, "batch"]  # [B]
Embeddings = Float[AnyArray, "batch embedding"]  # [B, E]
ClassLogProb = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> [B, classes]
MOST_NAMES = 64  # classes up to which CLIP's accuracy compares an image with all of their names
Gather = Callable[[Array], Array]  # from rows of this device to those of all devices


def classifier_cross_entropy(
    sde: SDE, class_log_prob: ClassLogProb, x0: Images, y: Classes, t: Times, z: Images
) -> Losses:
    """The negative log-likelihood -log q(y | x_t, t) of the classes y [B] of noisy images.

    `x_t = alpha x_0 + sigma z` at times t [B], with the standard-normal draw z [B, ...];
    `class_log_prob` is as `models.class_log_prob` gives it. The minimiser is the posterior
    p_t(y | x_t), whose gradient in x turns the score into that of a class (eq. 14). A class out of
    range has the loss NaN. The part `accuracy` is 1 where y is the likeliest class, else 0.
    """
    mean, std = sde.marginal_prob(x0, t)
    log_prob = class_log_prob(mean + batch_mul(std, z), t)
    y = jnp.where(y < 0, log_prob.shape[1], y)  # out of range, where NumPy would count backwards
    of_class = jnp.take_along_axis(log_prob, y[:, None], axis=1, mode="fill", fill_value=jnp.nan)
    correct = jnp.argmax(log_prob, axis=1) == y
    return -of_class[:, 0], {"accuracy": correct.astype(jnp.float32)}


def contrastive(
    image: Embeddings,
    text: Embeddings,
    scale: Array,
    y: Classes,
    gather: Gather = lambda rows: rows,
) -> Times:
    """The symmetric contrastive loss [B] of images and their captions, unit vectors [B, E].

    With similarities `s_ij = scale <image_i, text_j>` (Radford et al. 2021, arXiv:2103.00020,
    figure 3), image i's is the mean of `KL(q_i || softmax_j s_ij)` and `KL(q_i || softmax_j s_ji)`.
    Captions of one class say the same, so the target q_i is uniform over all j with y_j = y_i (Yang
    et al. 2022, arXiv:2204.03610); where every class occurs once it is CLIP's own. The entropy of
    q_i is taken off: 0 is perfect, and towers that see nothing have log(B / number of y_i).

    At the minimum s is `log p_t(x | text) / p_t(x)` up to a constant: each direction leaves it a
    function of what it conditions on, x or the text, and the two together leave neither.

    Args:
      gather: from rows of this device to those of all devices, of which each is contrasted.
    """
    images, texts, same = gather(image), gather(text), y[:, None] == gather(y)
    share = same / jnp.sum(same, 1, keepdims=True)
    entropy = jnp.log(jnp.sum(same, 1))

    def divergence(rows: Array, columns: Array) -> Array:
        similarity = scale * jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
        return -jnp.sum(share * jax.nn.log_softmax(similarity), 1) - entropy

    return (divergence(image, texts) + divergence(text, images)) / 2


# The seam to configs; `losses.from_config` says what each loss is called with.


def classifier_loss(
    config: ConfigDict, sde: SDE, captions: Array | None = None
) -> Callable[..., Losses]:
    """The loss of the noisy classifier that `config.training` describes.

    Raises:
      ValueError: a weighting of the score's errors. The loss: images without classes.
    """
    del captions
    refuse_weighting(config.training)
    times = times_from_config(config, sde)

    def loss(
        network: Network, x0: Images, keys: Keys, u: Times, y: Classes | None = None
    ) -> Losses:
        if y is None:
            raise ValueError("the objective 'classifier' needs the classes of the images")
        t, _ = times(u)
        log_prob = class_log_prob(sde, network)
        z = training_draws.noise(keys, x0.shape[1:])
        per_image, parts = classifier_cross_entropy(sde, log_prob, x0, y, t, z)
        return per_image, {**parts, "t": t}

    return loss


def clip_loss(config: ConfigDict, sde: SDE, captions: Array | None = None) -> Callable[..., Losses]:
    """The loss of the CLIP of noisy images that `config.training` describes.

    Each image is contrasted with one caption of its class, drawn at random. The part `accuracy` is
    1 where the first caption of the image's class, its name, is the most similar of all names, or,
    of more than `MOST_NAMES` classes, of the names that occur in the batch.

    Raises:
      ValueError: a weighting of the score's errors; a batch in parts, which would contrast less.
        The loss: images without classes, or no captions.
    """
    refuse_weighting(config.training)
    if config.training.accumulation > 1:
        raise ValueError(
            f"config.training.accumulation is {config.training.accumulation}, but objective 'clip' "
            "contrasts all images of a batch; it must be 1"
        )
    times = times_from_config(config, sde)

    def loss(
        network: Callable[..., tuple[Array, Array, Array]],
        x0: Images,
        keys: Keys,
        u: Times,
        y: Classes | None = None,
        gather: Gather = lambda rows: rows,
    ) -> Losses:
        if y is None or captions is None:
            raise ValueError("the objective 'clip' needs the classes of the images, and captions")
        t, _ = times(u)
        mean, std = sde.marginal_prob(x0, t)
        x = mean + batch_mul(std, training_draws.noise(keys, x0.shape[1:]))
        choices = training_draws.integers(keys, training_draws.FURTHER, captions.shape[1])
        all_names = len(captions) <= MOST_NAMES
        named = jnp.arange(len(captions)) if all_names else y
        tokens = jnp.concatenate([captions[y, choices], captions[named, 0]])
        image, texts, scale = network(x, continuous_labels(sde, t), tokens)
        text, names = texts[: len(y)], texts[len(y) :]
        if not all_names:
            names, named = gather(names), gather(named)
        correct = named[jnp.argmax(image @ names.T, axis=1)] == y
        per_image = contrastive(image, text, scale, y, gather)
        return per_image, {"accuracy": correct.astype(jnp.float32), "t": t}

    return loss


LOSSES: dict[str, Callable[[ConfigDict, SDE, Array | None], Callable[..., Losses]]] = {
    "classifier": classifier_loss,
    "clip": clip_loss,
}
