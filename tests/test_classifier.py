"""The classifier of noisy images, its objective, and what guidance needs of both."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import data
import losses
import models
from configs import quickstart
from data import transforms
from diffusion import training_draws
from diffusion.times import uniform_times
from runtime import experiment
from sde_lib import SDE, VESDE, VPSDE
from tests import gaussians, tiny
from tests.test_models import quick_jit, random_params, relative_error
from training.objective import objective_from_config

every_sde = pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
SMALL = models.NoisyClassifier(
    num_classes=3, widen_factor=1, blocks_per_group=1, dropout=0.5, fourier_scale=0.5
)
SHAPE = (8, 8, 2)
X = np.random.default_rng(1).uniform(size=(3, *SHAPE)).astype(np.float32)
LEVELS = np.array([0.02, 1.0, 40.0], np.float32)


# The objective.


@every_sde
def test_the_posterior_minimises_the_cross_entropy(sde: SDE) -> None:
    """Two Gaussians: the gradient in a perturbation of the logits is 0 within its Monte-Carlo
    error at p_t(y | x) only, and every other classifier is worse by more than that error."""
    count, mixture = 12000, gaussians.two_modes()
    random = np.random.default_rng(0)
    y: Any = (random.uniform(size=count) > mixture.weights[0]).astype(np.int32)
    means, stds = np.asarray(mixture.means)[y], np.asarray(mixture.stds)[y]
    x0: Any = (means + stds * random.normal(size=(count, 2))).astype(np.float32)
    t, _ = uniform_times(sde, jnp.asarray(random.uniform(size=count), jnp.float32))
    z: Any = random.normal(size=(count, 2)).astype(np.float32)

    def logits(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(functools.partial(mixture._log_parts, sde))(x, t)

    classifiers: list[Any] = [
        logits,  # the posterior
        lambda x, t: 1.5 * logits(x, t),  # too sure
        lambda x, t: logits(x, jnp.full_like(t, 0.05)),  # blind to the noise
        lambda x, t: jnp.broadcast_to(jnp.log(mixture.weights), (len(x), 2)),  # the prior
    ]

    @quick_jit
    def losses_and_slopes() -> Any:
        def loss(epsilon: jax.Array, classifier: Any) -> jax.Array:
            def log_prob(x: jax.Array, t: jax.Array) -> jax.Array:
                return jax.nn.log_softmax(classifier(x, t) + epsilon * logits(x, t))

            return losses.classifier_cross_entropy(sde, log_prob, x0, y, t, z)[0]

        zero, one = jnp.zeros(()), jnp.ones(())
        return [
            jax.jvp(functools.partial(loss, classifier=classifier), (zero,), (one,))
            for classifier in classifiers
        ]

    def deviations(values: Any) -> float:
        """The mean, in units of its Monte-Carlo error."""
        values = np.asarray(values, np.float64)
        return float(values.mean() / (values.std() / np.sqrt(count)))

    (posterior, slope), *others = losses_and_slopes()
    assert abs(deviations(slope)) < 4
    for other, other_slope in others:
        assert abs(deviations(other_slope)) > 4
        assert deviations(other - posterior) > 4


def test_cross_entropy_of_one_image_at_a_time() -> None:
    """-log q of the class that is told, at x_t; out of range it is NaN, never a number."""
    sde, t = VPSDE(), jnp.array([0.1, 0.5, 0.9, 0.9])
    x0, z = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    y = jnp.array([2, 0, 3, -1])

    def log_prob(x: jax.Array, times: jax.Array) -> jax.Array:
        np.testing.assert_array_equal(times, t)
        expected = sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * z
        np.testing.assert_allclose(x, expected, rtol=1e-6)
        return jnp.log(jnp.array([[0.2, 0.3, 0.5]] * 4))

    loss, parts = losses.classifier_cross_entropy(sde, log_prob, x0, y, t, z)
    np.testing.assert_allclose(loss, [np.log(2), np.log(5), np.nan, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(parts["accuracy"], [1, 0, 0, 0])


def test_a_class_below_zero_is_none_however_few_the_images_are() -> None:
    log_prob = jnp.log(jnp.array([[0.2, 0.3, 0.5]] * 2))
    x, y, t = jnp.zeros((2, 3)), jnp.array([-1, 1]), jnp.full(2, 0.5)
    loss, _ = losses.classifier_cross_entropy(VPSDE(), lambda x, t: log_prob, x, y, t, x)
    np.testing.assert_allclose(loss, [np.nan, -np.log(0.3)], rtol=1e-6)


def test_the_noise_of_an_image_is_its_own_keys() -> None:
    """x_t = alpha x_0 + sigma z, with the draw z of the image's key."""
    config, sde, seen = tiny.config(training__objective="classifier"), VPSDE(), []
    keys, x0 = jax.random.split(jax.random.key(0), 3), jnp.full((3, 4, 5, 2), 0.5)

    def network(x: jax.Array, labels: jax.Array, **kwargs: Any) -> jax.Array:
        seen.append(x)
        return jnp.zeros((3, 10))

    loss = losses.from_config(config, sde)
    _, parts = loss(network, x0, keys, jnp.full(3, 0.5), jnp.arange(3))
    mean, std = sde.marginal_prob(x0, parts["t"])
    z = (seen[0] - mean) / std[:, None, None, None]
    np.testing.assert_allclose(z, training_draws.noise(keys, (4, 5, 2)), atol=1e-4)


def test_the_classifier_is_told_what_a_continuous_score_network_is() -> None:
    def classifier(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.stack([labels, jnp.zeros_like(labels)], axis=1)

    t = jnp.array([0.25, 1.0])
    for sde, labels in ((VPSDE(), 999 * t), (VESDE(), [0.01 * 5000**0.25, 50.0])):
        found = models.class_log_prob(sde, classifier)(jnp.asarray(X[:2]), t)
        np.testing.assert_allclose(found[:, 0] - found[:, 1], labels, rtol=1e-4)
        np.testing.assert_allclose(jax.nn.logsumexp(found, axis=1), 0, atol=1e-5)


# The network.


@functools.cache
def small_params() -> Any:
    return random_params(SMALL, SHAPE)


@quick_jit
def logits_of(params: Any, x: Any, labels: Any, keys: jax.Array) -> Any:
    apply = functools.partial(SMALL.apply, {"params": params}, x, labels)
    return apply(), apply(keys)


def logits(x: Any, labels: Any, keys: jax.Array) -> Any:
    """In evaluation and in training."""
    return logits_of(small_params(), x, labels, keys)


def test_an_image_has_its_own_logits_level_and_dropout() -> None:
    keys = jax.random.split(jax.random.key(2), 3)
    out, dropped = logits(X, LEVELS, keys)
    assert out.shape == (3, 3)
    assert out.dtype == jnp.float32
    assert relative_error(dropped, out) > 1e-2
    x, levels, last = X.copy(), LEVELS.copy(), LEVELS.copy()
    x[:2], levels[:2], last[2] = 0.5, 3.0, 4.0
    others, others_dropped = logits(x, levels, keys[np.array([2, 2, 2])])
    assert relative_error(others[2:], out[2:]) < 1e-5
    assert relative_error(others_dropped[2:], dropped[2:]) < 1e-5
    _, other_key = logits(X, LEVELS, keys[np.array([0, 1, 0])])
    assert relative_error(other_key[2:], dropped[2:]) > 1e-2
    assert relative_error(other_key[:2], dropped[:2]) < 1e-5
    other_level, _ = logits(X, last, keys)
    assert relative_error(other_level[2:], out[2:]) > 1e-2
    louder, _ = logits(1000 * X, LEVELS, keys)  # the size of x is the noise's, not the image's
    assert relative_error(louder, logits(2000 * X, LEVELS, keys)[0]) < 1e-3


@pytest.mark.slow
def test_guidance_can_be_differentiated_again() -> None:
    """The gradient of log p(y | x) is finite, also of a constant image, and has the derivative
    that finite differences give."""
    classifier: Any = functools.partial(SMALL.apply, {"params": small_params()})
    log_prob = models.class_log_prob(VESDE(), classifier)
    t = jnp.array([0.1, 0.5, 1.0])
    v = np.random.default_rng(3).standard_normal(X.shape).astype(np.float32)

    def guidance(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(log_prob(x, t)[:, 1]))(x)

    derivative = quick_jit(lambda x, v: jax.jvp(guidance, (x,), (v,)))
    x = X.copy()
    x[0] = 0.5
    value, curvature = derivative(x, v)
    assert np.isfinite(value).all()
    assert np.abs(value).max((1, 2, 3)).min() > 1e-4
    h = 3e-3
    difference = (derivative(x + h * v, v)[0] - derivative(x - h * v, v)[0]) / (2 * h)
    assert relative_error(curvature[1:], difference[1:]) < 1e-2


def test_bfloat16_computes_roughly_the_same_and_keeps_float32_outside() -> None:
    half = SMALL.clone(dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda p: half.apply({"params": p}, X, LEVELS))(small_params())
    convolutions: list[Any] = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv"]
    assert len(convolutions) == 9  # seven of 3x3 pixels, two of one
    assert all(eqn.outvars[0].aval.dtype == jnp.bfloat16 for eqn in convolutions)
    run = quick_jit(lambda params, x: half.apply({"params": params}, x, LEVELS))
    errors = []
    for seed in range(8):  # rounding is by chance: single batches are off by 0.5 to 5 per cent
        x = np.random.default_rng(10 + seed).uniform(size=X.shape).astype(np.float32)
        out = run(small_params(), x)
        assert out.dtype == jnp.float32
        exact, _ = logits(x, LEVELS, jax.random.split(jax.random.key(2), 3))
        errors.append(relative_error(out, exact))
    assert 1e-5 < np.mean(errors) < 0.03
    shapes = jax.eval_shape(
        functools.partial(models.init, half, image_shape=SHAPE), jax.random.key(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_the_config_describes_a_wide_residual_network() -> None:
    """WRN-28-10 has 36.5 million parameters, and some more for the noise level."""
    config = quickstart.get_config()
    small = models.classifier_from_config(config)
    assert small.embedding_type == "positional"
    with config.unlocked():
        config.classifier = ConfigDict(
            {**config.classifier.to_dict(), "widen_factor": 10, "blocks_per_group": 4}
        )
    wide = models.classifier_from_config(config)
    init = functools.partial(models.init, wide, image_shape=(32, 32, 3))
    tree = jax.eval_shape(init, jax.random.key(0))
    plain = [leaf.size for leaf in jax.tree.leaves(tree)]
    convolutions = [leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim == 4]
    assert len(convolutions) == 1 + 2 * 12 + 3  # and three on shortcuts: 28 layers with the dense
    assert 36.4e6 < sum(convolutions) < 36.6e6
    assert sum(plain) < 1.2 * sum(convolutions)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 1, "classifier.num_classes is 1; it must be 2 or more"),
        ("nonlinearity", "gelu", "unknown classifier.nonlinearity 'gelu'; known: elu, lrelu"),
        ("embedding_type", "learnt", "'learnt'; known: fourier, positional"),
        ("dtype", "float16", "unknown classifier.dtype 'float16'; known: bfloat16, float32"),
    ],
)
def test_impossible_classifiers_are_refused(field: str, value: Any, message: str) -> None:
    config = quickstart.get_config()
    config.classifier[field] = value
    with pytest.raises(ValueError, match=message):
        models.classifier_from_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__likelihood_weighting": True}, "likelihood_weighting is True, which weighs"),
        ({"training__weighting": "x0"}, "weighting is 'x0', which weighs errors of a score"),
        ({"training__time": "likelihood"}, "time 'likelihood' is for training.weighting"),
        ({"classifier__num_classes": 9}, "num_classes is 9, but digits has 10 classes"),
    ],
)
def test_what_a_classifier_cannot_be_trained_with(changes: Any, message: str) -> None:
    config = tiny.config(training__objective="classifier", **changes)
    with pytest.raises(ValueError, match=message):
        objective_from_config(config, experiment.build(config), data.load("digits", "train"))


def test_a_classifier_is_told_the_classes_and_draws_nothing() -> None:
    """The loss is the cross-entropy of the images' classes, here for logits that are known."""
    config = tiny.config(training__objective="classifier")
    parts = experiment.build(config)
    assert isinstance(parts.module, models.NoisyClassifier)
    known = np.log(np.arange(1.0, 11.0, dtype=np.float32) / 55.0)
    objective = dataclasses.replace(
        objective_from_config(config, parts),
        apply=lambda variables, x, labels: jnp.broadcast_to(known, (len(x), 10)),
    )
    images, classes = data.load("digits", "train").take(np.arange(4))
    run = quick_jit(functools.partial(objective, total=4, train=False, flip=False))
    per_image, named = run({}, images, classes, jax.random.key(0), np.arange(4))
    np.testing.assert_allclose(per_image, -known[classes], rtol=1e-6)
    assert set(named) == {"accuracy", "t"}
    with pytest.raises(ValueError, match="trained a classifier of noisy images"):
        tiny.generator(config, parts)


@pytest.mark.slow
@every_sde
def test_it_learns_the_digits(sde: SDE) -> None:
    """The loss of images at all noise levels falls well below log 10, the loss of a guess."""
    embedding_type = "fourier" if isinstance(sde, VESDE) else "positional"
    config = quickstart.get_config()
    config.training.objective = "classifier"
    loss_from_config = losses.from_config(config, sde)
    module = models.classifier_from_config(config).clone(embedding_type=embedding_type)
    dataset, test = (data.load("digits", split) for split in ("train", "test"))
    params = models.init(module, jax.random.key(0), dataset.image_shape)
    optimizer = optax.adam(3e-3)

    def loss(params: Any, x0: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        classifier: Any = functools.partial(module.apply, {"params": params})
        time_key, keys = jax.random.split(key)[0], jax.random.split(key, len(x0))
        u = jax.random.uniform(time_key, (len(x0),))
        per_image, parts = loss_from_config(classifier, x0, keys, u, y)
        return jnp.mean(per_image), jnp.mean(parts["accuracy"])

    @jax.jit
    def step(carry: Any, x0: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(loss, has_aux=True)(params, x0, y, key)[0], state
        )
        return optax.apply_updates(params, updates), state

    x0 = transforms.scale(dataset.images, dataset.levels, centered=True)
    carry, rng = (params, optimizer.init(params)), np.random.default_rng(0)
    for i in range(150):
        rows = rng.integers(len(x0), size=64)
        carry = step(carry, x0[rows], dataset.labels[rows], jax.random.key(i))
    held_out = transforms.scale(test.images, test.levels, centered=True)
    mean, accuracy = jax.jit(loss)(carry[0], held_out, test.labels, jax.random.key(0))
    assert mean < 0.8 * np.log(10)
    assert accuracy > 0.3
