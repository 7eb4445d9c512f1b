"""Tasks of simulation-based inference: parameters theta and what a simulator makes of them.

An example is the vector (theta, x), theta from the prior and x from p(x | theta). The tasks are
those of the benchmark sbibm (Lueckmann et al. 2021, arXiv:2101.04653, appendix T), written from
their definitions. As with points of the plane (`data.toy`), an example is a function of uniform
numbers by its row, the same for ever.

`posterior` draws theta given x by the true posterior, which each task knows in another way.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from data.toy import PointSet, normal


class Simulator(PointSet):
    """A simulator with its prior, and the posterior that belongs to them.

    Attributes:
      DIM_THETA: the first entries of an example, theta; the others are x.
    """

    SIZES: ClassVar[dict[str, int]] = {"train": 100_000, "test": 10_000}
    NUM_CLASSES = 1
    DIM_THETA: ClassVar[int]

    @classmethod
    def posterior(cls, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` draws [count, DIM_THETA] from p(theta | x) of one observation x."""
        raise NotImplementedError


class TwoMoonsSBI(Simulator):
    """Two moons (sbibm T.8): the posterior is two crescents, which are mirror images.

    theta ~ U(-1, 1)^2, and with angle a ~ U(-pi/2, pi/2) and radius r ~ N(0.1, 0.01^2)

        x = (r cos a + 0.25, r sin a) + (-|theta_1 + theta_2|, -theta_1 + theta_2) / sqrt(2).
    """

    name = "two_moons_sbi"
    IMAGE_SHAPE = (4,)
    NUMBERS = 5
    DIM_THETA = 2

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = 2.0 * u[:, :2] - 1.0
        crescent = cls._crescent(np.pi * (u[:, 2] - 0.5), normal(u[:, 3], u[:, 4])[:, 0])
        turned = np.stack([-np.abs(theta[:, 0] + theta[:, 1]), theta[:, 1] - theta[:, 0]], 1)
        x = crescent + turned / np.sqrt(2.0)
        return np.concatenate([theta, x], 1), np.zeros(len(u))

    @staticmethod
    def _crescent(angle: np.ndarray, z: np.ndarray) -> np.ndarray:
        radius = 0.1 + 0.01 * z
        return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)

    @classmethod
    def posterior(cls, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """The crescent's own draws, turned back: the map to theta has a constant Jacobian.

        Each of them has two theta, with theta_1 + theta_2 of either sign; those outside of the
        prior are drawn again.
        """
        accepted = np.zeros((0, 2))
        while len(accepted) < count:
            angle = rng.uniform(-0.5 * np.pi, 0.5 * np.pi, 4 * count)
            rest = np.sqrt(2.0) * (x - cls._crescent(angle, rng.normal(size=4 * count)))
            total = np.where(rng.random(4 * count) < 0.5, rest[:, 0], -rest[:, 0])
            theta = 0.5 * np.stack([total - rest[:, 1], total + rest[:, 1]], 1)
            inside = (rest[:, 0] <= 0.0) & np.all(np.abs(theta) <= 1.0, 1)
            accepted = np.concatenate([accepted, theta[inside]])
        return accepted[:count]


class GaussianLinear(Simulator):
    """The mean of a Gaussian (sbibm T.1): theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I), of 10 entries.

    The posterior is N(x / 2, 0.05 I).
    """

    name = "gaussian_linear"
    IMAGE_SHAPE = (20,)
    NUMBERS = 20
    DIM_THETA = 10
    VARIANCE = 0.1

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = np.sqrt(cls.VARIANCE) * normals(u)
        theta = z[:, :10]
        return np.concatenate([theta, theta + z[:, 10:]], 1), np.zeros(len(u))

    @classmethod
    def posterior(cls, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return 0.5 * x + np.sqrt(0.5 * cls.VARIANCE) * rng.normal(size=(count, 10))


class SLCP(Simulator):
    """A simple likelihood and a complex posterior (sbibm T.3; Papamakarios et al. 2019).

    theta ~ U(-3, 3)^5, and x are four draws of the plane from N(m, S) with m = (theta_1, theta_2),
    standard deviations s_1 = theta_3^2, s_2 = theta_4^2 and correlation tanh(theta_5).
    """

    name = "slcp"
    IMAGE_SHAPE = (13,)
    NUMBERS = 13
    DIM_THETA = 5
    BOUND = 3.0
    CANDIDATES = 1_000_000  # prior draws of which `posterior` resamples its first walkers
    MOVES = 400

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = cls.BOUND * (2.0 * u[:, :5] - 1.0)
        z = normals(u[:, 5:]).reshape(-1, 4, 2)
        s1, s2, rho = cls._moments(theta)
        first = theta[:, :1] + s1[:, None] * z[..., 0]
        mixed = rho[:, None] * z[..., 0] + np.sqrt(1.0 - rho**2)[:, None] * z[..., 1]
        second = theta[:, 1:2] + s2[:, None] * mixed
        x = np.stack([first, second], -1).reshape(-1, 8)
        return np.concatenate([theta, x], 1), np.zeros(len(u))

    @staticmethod
    def _moments(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both standard deviations, and the correlation."""
        return theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])

    @classmethod
    def log_likelihood(cls, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """log p(x | theta) [n] of one observation x [8]; -inf outside of the prior."""
        s1, s2, rho = cls._moments(theta)
        with np.errstate(all="ignore"):
            points = x.reshape(4, 2)
            a = (points[:, 0] - theta[:, :1]) / s1[:, None]
            b = (points[:, 1] - theta[:, 1:2]) / s2[:, None]
            rest = 1.0 - rho**2
            square = (a**2 - 2.0 * rho[:, None] * a * b + b**2).sum(1) / rest
            value = -0.5 * square - 4.0 * np.log(2.0 * np.pi * s1 * s2 * np.sqrt(rest))
        inside = np.all(np.abs(theta) <= cls.BOUND, 1) & np.isfinite(value)
        return np.where(inside, value, -np.inf)

    @classmethod
    def posterior(cls, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws by the exact likelihood: an ensemble of walkers that begins near the posterior.

        The likelihood depends on the squares of theta_3 and theta_4, so their signs are fair coins,
        and the walkers stay in one of four equal parts. They begin as prior draws, resampled by
        their likelihood, and take `MOVES` stretch moves (Goodman and Weare 2010), in two halves.
        """
        walkers = max(2 * (count // 2 + 1), 500)
        theta = rng.uniform(-cls.BOUND, cls.BOUND, (cls.CANDIDATES, 5))
        theta[:, 2:4] = np.abs(theta[:, 2:4])
        log_p = cls.log_likelihood(theta, x)
        weights = np.exp(log_p - log_p.max())
        theta = theta[rng.choice(len(theta), walkers, p=weights / weights.sum())]
        log_p = cls.log_likelihood(theta, x)
        half = walkers // 2
        for move in range(2 * cls.MOVES):
            mine = slice(half) if move % 2 else slice(half, None)
            others = theta[half:] if move % 2 else theta[:half]
            stretch = np.square(1.0 + rng.random(half)) / 2.0  # of density 1 / sqrt on [1/2, 2]
            anchor = others[rng.integers(0, half, half)]
            proposal = anchor + stretch[:, None] * (theta[mine] - anchor)
            value = np.where(
                np.all(proposal[:, 2:4] >= 0.0, 1), cls.log_likelihood(proposal, x), -np.inf
            )
            ratio = 4.0 * np.log(stretch) + value - log_p[mine]
            accept = np.log(rng.random(half)) < ratio
            theta[mine] = np.where(accept[:, None], proposal, theta[mine])
            log_p[mine] = np.where(accept, value, log_p[mine])
        drawn = rng.permutation(theta)[:count]
        drawn[:, 2:4] *= rng.choice([-1.0, 1.0], (count, 2))
        return drawn


def normals(u: np.ndarray) -> np.ndarray:
    """Standard-normal numbers [n, 2 k] from as many uniform ones (Box and Muller)."""
    pairs = [normal(u[:, i], u[:, i + 1]) for i in range(0, u.shape[1], 2)]
    return np.concatenate(pairs, 1)
