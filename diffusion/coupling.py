"""Couplings: which noise an image of a training batch is paired with.

Along `x_t = alpha x_0 + sigma z`, a loss that compares a prediction with x_0 and z has a network
learn `E[alpha' x_0 + sigma' z | x_t]`, whose flow carries the noise to the data by the laws of x_t,
however the two are paired (Liu et al. 2022, arXiv:2209.03003, theorem 3.3; Tong et al. 2023,
arXiv:2302.00482, theorem 3.1). With independent pairs that is, in other words, the score. With
others it is not: `-E[z | x_t] / sigma` is the score of the law of x_t for independent pairs alone,
so that the probability flow is exact and whatever else asks a score, such as Langevin steps or the
reverse SDE, is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from configs.names import lookup
from sde_lib import Images

Permutation = Int[Array, "total"]
Costs = Float[Array, "total total"]


class Batch(NamedTuple):
    """The global batch around the images at hand, which are some or all of it.

    Attributes:
      gather: from rows of this device to those of all devices, in their order.
      numbers: [B], the places of the images at hand in it.
    """

    gather: Callable[[Array], Array]
    numbers: Array


Teacher = Callable[[Images], Images]  # from standard-normal z [B, ...] to images of another flow


@runtime_checkable
class Coupling(Protocol):
    """From images x_0 and their draws z to the pairs of which x_t is made.

    It is handed the global batch, where there is one around them, and the teacher, where the run
    has one.
    """

    def __call__(
        self, x0: Images, z: Images, batch: Batch | None = None, teacher: Teacher | None = None
    ) -> tuple[Images, Images]: ...


def independent(
    x0: Images, z: Images, batch: Batch | None = None, teacher: Teacher | None = None
) -> tuple[Images, Images]:
    """Every image with its own draw of the noise."""
    return x0, z


def minibatch_ot(
    x0: Images, z: Images, batch: Batch | None = None, teacher: Teacher | None = None
) -> tuple[Images, Images]:
    """The images of a global batch with its draws of the noise, so that they are near each other.

    Of all ways to pair them it is the one with the least sum of `|x_0 - z|^2`: optimal transport
    between the two batches (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023,
    arXiv:2302.00482, section 3.2.5). Every image alone is as likely to have one draw as another
    where the order of the batch says nothing, so both keep their laws; together they approach
    optimal transport between data and noise as the batch grows, with straighter paths.

    Every device solves the whole assignment, of n^2 costs, in about n^3 operations one after the
    other. Without a batch around them images keep their draws.
    """
    if batch is None:
        return x0, z
    images, draws = batch.gather(x0), batch.gather(z)
    partners = assignment(-inner_products(images, draws))
    return x0, draws[partners[batch.numbers]]


def reflow(
    x0: Images, z: Images, batch: Batch | None = None, teacher: Teacher | None = None
) -> tuple[Images, Images]:
    """Every draw of the noise with the image that another flow carries it to.

    The flow that is learned of these pairs has the teacher's laws, and straighter paths (Liu et al.
    2022, arXiv:2209.03003, theorems 3.5 and 3.6). The data set's images are not looked at.

    Raises:
      ValueError: no teacher.
    """
    if teacher is None:
        raise ValueError("training.coupling 'reflow' needs a teacher")
    return jax.lax.stop_gradient(teacher(z)), z


def inner_products(x: Images, z: Images) -> Costs:
    """`<x_i, z_j>` [n, n], all that pairing changes in the sum of squared distances."""
    flat = x.reshape(len(x), -1), z.reshape(len(z), -1)
    return jnp.matmul(flat[0], flat[1].T, precision=jax.lax.Precision.HIGHEST)


def assignment(costs: Costs) -> Permutation:
    """The column [n] of each row, no column twice, whose costs have the least sum."""
    from optax import assignment as optax_assignment

    rows, columns = optax_assignment.hungarian_algorithm(jax.lax.stop_gradient(costs))
    return jnp.zeros(len(costs), jnp.int32).at[rows].set(columns.astype(jnp.int32))


COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    "minibatch_ot": minibatch_ot,
    "reflow": reflow,
}


def from_config(config: ConfigDict, teacher: Teacher | None = None) -> Coupling:
    """The coupling that `config.training` names, with the teacher that "reflow" needs.

    Raises:
      ValueError: an unknown name; a coupling of the batch with settings that it does not suit.
    """
    training = config.training
    coupling = lookup(COUPLINGS, training.coupling, "training.coupling")
    if coupling is independent:
        return coupling
    given = f"config.training.coupling is {training.coupling!r}, "
    if training.objective != "dsm":
        raise ValueError(f"{given}which needs training.objective 'dsm', not {training.objective!r}")
    if training.accumulation > 1:
        raise ValueError(f"{given}of all images of a batch; training.accumulation must be 1")
    # Noise that an image prefers tells of its class: given the class it is no longer normal.
    for name, value in (
        ("model.num_labels", config.model.num_labels),
        ("training.augment", training.augment),
    ):
        if value:
            raise ValueError(
                f"{given}which pairs images of some classes with some of the noise; a network that "
                f"is told of them ({name} is {value:g}) needs 'independent'"
            )
    return functools.partial(coupling, teacher=teacher)
