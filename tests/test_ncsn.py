"""NCSN and NCSNv2 against the official JAX networks, and their parts against definitions."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import ncsn, refinenet
from tests import golden_cases
from tests.test_models import quick_jit, relative_error

MODELS = {
    "ncsn": (ncsn.NCSN, "64"),
    "ncsnv2_64": (ncsn.NCSNv2, "64"),
    "ncsnv2_128": (ncsn.NCSNv2, "128"),
    "ncsnv2_256": (ncsn.NCSNv2, "256"),
}
FILES = golden_cases.networks("jp")
OFFICIAL = {name: golden_cases.table(name) for name in ("official_configs", "parameter_counts")}
STYLE = refinenet.Style(jax.nn.elu)
CONFIGS = ("ve/ncsn/cifar10_124", "ve/ncsnv2/celeba", "ve/ncsnv2/bedroom")


def network(model: dict[str, Any], data: dict[str, Any]) -> ncsn.NCSNv2:
    """The network that a config's sections `model` and `data` describe."""
    cls, architecture = MODELS[model["name"]]
    names = ("nf", "nonlinearity", "interpolation", "scale_by_sigma", "sigma_min", "sigma_max")
    fields = {name: model[name] for name in (*names, "num_scales")}
    if cls is ncsn.NCSN:
        fields["num_classes"] = model.get("num_classes", model["num_scales"])
    return cls(**fields, architecture=architecture, centered=data["centered"])


def shapes(module: ncsn.NCSNv2, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    x, labels = jnp.zeros((1, *image)), jnp.zeros(1, int)
    params = jax.eval_shape(module.init, jax.random.key(0), x, labels)["params"]
    return {name: p.shape for name, p in traverse_util.flatten_dict(params, sep="/").items()}


@pytest.mark.golden
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if "64" in path.stem else pytest.mark.slow)
        for path in FILES
    ],
)
def test_official_numbers(path: pathlib.Path) -> None:
    """Parameter names and shapes, output, and its gradient in x are the official network's."""
    case = golden_cases.load(path)
    module = network(case["config_json"]["model"], case["config_json"]["data"])
    flat = {name[3:]: value for name, value in case.items() if name.startswith("jp/")}
    params = traverse_util.unflatten_dict(flat, sep="/")
    x, v = case["x"], case["v"]
    assert shapes(module, x.shape[1:]) == {name: value.shape for name, value in flat.items()}

    @jax.jit
    def run(x, labels):
        out, pullback = jax.vjp(lambda x: module.apply({"params": params}, x, labels), x)
        return out, pullback(jnp.asarray(v))[0]

    for key in (name[2:] for name in case if name.startswith("t_")):
        ours = run(x, case[f"t_{key}"])
        for a, b in zip(ours, (case[f"out_{key}"], case[f"gradx_{key}"]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", CONFIGS)
def test_official_parameter_counts(name: str) -> None:
    """At full size, the networks have as many tensors and parameters as the official ones."""
    config = OFFICIAL["official_configs"][name]
    side = config["data"]["image_size"]
    found = shapes(network(config["model"], config["data"]), (side, side, 3))
    assert len(found) == OFFICIAL["parameter_counts"][name]["tensors"]
    assert sum(map(math.prod, found.values())) == OFFICIAL["parameter_counts"][name]["parameters"]


@pytest.fixture(scope="module")
def small() -> tuple[ncsn.NCSNv2, Any, Any]:
    """A network (unscaled output), its parameters, and its jitted forward pass."""
    module = ncsn.NCSNv2(nf=4, num_scales=3, sigma_max=9.0, sigma_min=1.0, scale_by_sigma=False)
    random = np.random.default_rng(0)
    flat = {
        name: random.normal(size=shape) / 3 for name, shape in shapes(module, (4, 4, 2)).items()
    }
    params = {"params": traverse_util.unflatten_dict(flat, sep="/")}
    return module, params, jax.jit(module.apply)


@pytest.mark.slow
def test_scale_by_sigma(small: tuple[ncsn.NCSNv2, Any, Any]) -> None:
    """Divides by 9, 3, 1 for labels 0, 1, 2 (descending), or by labels that are noise levels."""
    module, params, plain = small
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    labels, sigmas = jnp.array([0, 1, 2]), jnp.array([9.0, 3.0, 1.0])
    scaled = jax.jit(module.clone(scale_by_sigma=True).apply)
    expected = plain(params, x, labels) / sigmas[:, None, None, None]
    for given in (labels, sigmas):
        np.testing.assert_allclose(scaled(params, x, given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_centered(small: tuple[ncsn.NCSNv2, Any, Any]) -> None:
    """Pixels in [0, 1] are what a network of centred pixels calls 2x - 1."""
    module, params, plain = small
    x, labels = jax.random.uniform(jax.random.key(1), (2, 4, 4, 2)), jnp.array([0, 2])
    centred = jax.jit(module.clone(centered=True).apply)(params, 2 * x - 1, labels)
    np.testing.assert_allclose(plain(params, x, labels), centred, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_and_keeps_float32_outside() -> None:
    """In a conditional residual block and a refinement of two inputs."""
    x, labels = jax.random.normal(jax.random.key(1), (2, 4, 4, 4)), jnp.array([0, 2])
    half = STYLE._replace(num_classes=3, dtype=jnp.bfloat16)

    def run(params: Any, style: refinenet.Style) -> Any:
        down = refinenet.ResidualBlock(style, features=8).apply(params["down"], x, labels)
        both = [x.astype(style.dtype or x.dtype), down]
        return down, refinenet.RefineBlock(4, style).apply(params["refine"], both, labels)

    @quick_jit
    def compare(key: jax.Array) -> Any:
        down, _ = refinenet.ResidualBlock(half, features=8).init_with_output(key, x, labels)
        params = {
            "down": refinenet.ResidualBlock(half, features=8).init(key, x, labels),
            "refine": refinenet.RefineBlock(4, half).init(key, [x, down], labels),
        }
        return params, run(params, half._replace(dtype=None)), run(params, half)

    params, exact, rough = compare(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for a, b in zip(exact, rough, strict=True):
        assert (a.dtype, b.dtype) == (jnp.float32, jnp.bfloat16)
        assert 1e-4 < relative_error(b.astype(jnp.float32), a) < 0.05


def test_bfloat16_network_has_float32_output(small: tuple[ncsn.NCSNv2, Any, Any]) -> None:
    module, params, _ = small
    x, labels = jax.random.normal(jax.random.key(1), (2, 4, 4, 2)), jnp.array([0, 2])
    half = module.clone(dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(half.apply)(params, x, labels)
    convolutions: list[Any] = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv"]
    kinds = {eqn.outvars[0].aval.dtype for eqn in convolutions}
    assert kinds == {jnp.dtype("bfloat16")}
    assert jaxpr.out_avals[0].dtype == jnp.float32


@pytest.mark.slow
def test_remat_changes_what_is_stored_but_no_number(small: tuple[ncsn.NCSNv2, Any, Any]) -> None:
    module, params, _ = small
    x, labels = jax.random.normal(jax.random.key(1), (2, 4, 4, 2)), jnp.array([0, 2])

    def gradient(module: Any) -> Any:
        def loss(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(module.apply(params, x, labels)))

        residuals = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], x)
        return quick_jit(jax.grad(loss))(x), sum(leaf.size for leaf in jax.tree.leaves(residuals))

    (plain, plain_size), (lean, lean_size) = gradient(module), gradient(module.clone(remat=True))
    assert lean_size < 0.6 * plain_size
    assert relative_error(lean, plain) < 2e-4
    assert shapes(module.clone(remat=True), (4, 4, 2)) == shapes(module, (4, 4, 2))


@pytest.mark.slow
def test_initial_values() -> None:
    """PyTorch's: uniform within 1 / sqrt(fan-in), biases too; norms near one, shifts zero."""
    x, labels = jnp.zeros((1, 4, 4, 8)), jnp.zeros(1, int)
    block = jax.jit(refinenet.ResidualBlock(STYLE).init)(jax.random.key(0), x, labels)["params"]
    for conv in (block["Conv_0"], block["Conv_1"]):
        assert 0.9 < np.abs(conv["kernel"]).max() * math.sqrt(9 * 8) <= 1
        assert 0.3 < np.abs(conv["bias"]).max() * math.sqrt(9 * 8) <= 1
    norm = block["InstanceNorm2dPlus_0"]
    assert 0 < np.abs(norm["gamma"] - 1).max() < 0.1 > np.abs(norm["alpha"] - 1).max() > 0
    assert not np.any(norm["beta"])
    embedding = refinenet._scale_and_shift(jax.random.key(0), (50, 12))
    assert np.std(embedding[:, :8]) == pytest.approx(0.02, rel=0.15)
    assert np.mean(embedding[:, :8]) == pytest.approx(1, abs=0.005)
    assert not np.any(embedding[:, 8:])


def test_instance_norm_plus() -> None:
    """Over space the result has mean gamma alpha standardised(means) + beta, and spread gamma."""
    gain = jnp.arange(1.0, 17.0) * jnp.ones((1, 1, 1, 16))
    x = 3 * gain * jax.random.normal(jax.random.key(0), (2, 8, 8, 16)) + gain**2
    y = np.asarray(
        refinenet._instance_norm_plus(x, 2 * gain, jnp.full((1, 1, 1, 16), 0.5), gain, STYLE)
    )
    means = np.mean(x, (1, 2))
    standard = (means - means.mean(1, keepdims=True)) / means.std(1, keepdims=True)
    expected = gain[0, 0] * standard + gain[0, 0]
    np.testing.assert_allclose(y.mean((1, 2)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 2)), 2 * gain[0, 0] * np.ones((2, 1)), rtol=1e-4)


@pytest.mark.slow
def test_pools() -> None:
    """5x5 windows: a maximum of the pixels there are, a mean that counts the others as zero."""
    x: Any = np.asarray(jax.random.normal(jax.random.key(0), (2, 4, 7, 3))) - 3
    largest, mean = np.empty_like(x), np.empty_like(x)
    for i in range(4):
        for j in range(7):
            window = x[:, max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3]
            largest[:, i, j], mean[:, i, j] = window.max((1, 2)), window.sum((1, 2)) / 25
    np.testing.assert_array_equal(refinenet._max_pool(x), largest)
    np.testing.assert_allclose(refinenet._mean_pool(x), mean, rtol=1e-5)
    grad = jax.grad(lambda x: jnp.sum(refinenet._max_pool(x)))(x)
    assert np.sum(grad) == x.size  # every window's gradient goes to its one largest pixel
    assert np.all(grad[~np.isin(x, largest)] == 0)


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({"architecture": "32"}, "128, 256, 64"),
        ({"interpolation": "cubic"}, "bilinear, nearest"),
        ({"nonlinearity": "gelu"}, "elu"),
    ],
    ids=["architecture", "interpolation", "nonlinearity"],
)
def test_refuses_unknown_choices(fields: dict[str, Any], valid: str) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}.*{valid}"):
        ncsn.NCSNv2(**fields)


def test_refuses_sides_and_labels_that_do_not_fit() -> None:
    module = ncsn.NCSNv2(nf=4, architecture="128")
    with pytest.raises(ValueError, match=r"10 x 8 .* multiples of 4"):
        shapes(module, (10, 8, 3))
    assert shapes(module, (12, 8, 3))
    with pytest.raises(ValueError, match=r"labels must be integers, not float32"):
        ncsn.NCSN(nf=4).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))
