"""NCSN++ and DDPM: the official numbers, and what must hold whatever the numbers are."""

import functools
import itertools
import pathlib
import re
import types
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import models
from interop import official
from models import layers
from models.embeddings import (
    noise_embedding,
    noise_levels,
    over_noise_level,
    positional_embedding,
)
from models.ops.conv import Conv
from tests import golden_cases

SLOW_TO_COMPILE = ("a1b_", "a3_", "a4c_", "a5b_", "a7_")
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def load_network(stored: dict[str, Any]) -> tuple[Any, Any, tuple[int, ...]]:
    """The module of a golden file, its parameters, and the shape of an image."""
    module = models.from_config(golden_cases.config(stored["config_json"]))
    image_shape = golden_cases.nhwc(stored["x"]).shape[1:]
    state_dict = {name[3:]: stored[name] for name in stored if name.startswith("sd/")}
    return module, official.params_from_torch(module, state_dict, image_shape), image_shape


def relative_error(found: Any, expected: Any) -> float:
    """The largest error of any image, in units of that image's largest value."""
    axes = tuple(range(1, np.ndim(expected)))
    errors = np.abs(np.asarray(found) - expected).max(axes)
    return float((errors / np.abs(expected).max(axes)).max())


@pytest.mark.golden
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=pytest.mark.slow if path.stem.startswith(SLOW_TO_COMPILE) else (),
        )
        for path in golden_cases.networks("sd")
    ],
)
def test_official_numbers(path: pathlib.Path) -> None:
    """Output, its gradient in x, and the norm of its gradient in every parameter."""
    stored = golden_cases.load(path)
    module, params, image_shape = load_network(stored)
    meta, model = stored["meta_json"], stored["config_json"]["model"]
    fast_phases = model["embedding_type"] == "fourier" and model["fourier_scale"] >= 16
    tolerance = 1e-3 if fast_phases and model["name"] == "ncsnpp" else 2e-5
    entries = official.correspondence(module, image_shape)
    assert [entry.torch_name for entry in entries] == meta["param_order"]

    @quick_jit
    def run(params, x, labels, v):
        def loss(params, x):
            out = module.apply({"params": params}, x, labels)
            return jnp.sum(out * v), out

        grads, out = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return out, grads[1], jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g * g)), grads[0])

    x, v = golden_cases.nhwc(stored["x"]), golden_cases.nhwc(stored["v"])
    kinds = [name.removeprefix("t_") for name in stored if name.startswith("t_")]
    assert kinds
    for kind in kinds:
        labels = jnp.asarray(stored[f"t_{kind}"])
        out, gradient, norms = run(params, x, labels, v)
        assert out.dtype == jnp.float32
        assert relative_error(out, golden_cases.nhwc(stored[f"out_{kind}"])) < tolerance
        assert relative_error(gradient, golden_cases.nhwc(stored[f"gradx_{kind}"])) < tolerance

        flat = flax.traverse_util.flatten_dict(norms)
        expected = meta[f"gradnorm_{kind}"]
        without_effect = set(meta[f"params_without_effect_{kind}"])
        small = 1e-4 * np.median([value for value in expected.values() if value])
        for entry in entries:
            if entry.path is None or not entry.trainable or entry.torch_name in without_effect:
                assert entry.path is None or flat[entry.path] < small, entry.torch_name
            else:
                norm = expected[entry.torch_name]
                np.testing.assert_allclose(flat[entry.path], norm, 1e-3, err_msg=entry.torch_name)


SMALL = models.NCSNpp(
    nf=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    dropout=0.5,
    embedding_type="positional",
    init_scale=1.0,
    scale_by_sigma=False,
    num_labels=3,
)
SHAPE = (8, 8, 3)
X = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
LEVELS = jnp.array([0.02, 1.0, 40.0])


def random_params(module: Any, image_shape: tuple[int, ...]) -> Any:
    """Parameters far from their initial values: N(0, 1 / fan_in), norms' scales about one."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in official.parameter_shapes(module, image_shape).items():
        z = rng.standard_normal(shape, np.float32)
        gain = 0.1 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        flat[path] = (path[-1] == "scale") + np.float32(gain) * z
    return flax.traverse_util.unflatten_dict(flat)


@functools.cache
def small_params() -> Any:
    return random_params(SMALL, SHAPE)


@quick_jit
def small_training(x: jax.Array, keys: jax.Array) -> Any:
    return SMALL.apply({"params": small_params()}, x, LEVELS, keys)


@quick_jit
def small(x: jax.Array, y: jax.Array) -> Any:
    return SMALL.apply({"params": small_params()}, x, LEVELS, y=y)


@pytest.mark.slow
def test_dropout_of_an_image_depends_on_its_key_alone() -> None:
    keys = jax.random.split(jax.random.key(2), 3)
    out = small_training(X, keys)
    others = small_training(X.at[:2].set(0.5), keys.at[:2].set(keys[2]))
    assert relative_error(others[2:], out[2:]) < 1e-5
    other_key = small_training(X, keys.at[2].set(keys[0]))
    assert relative_error(other_key[2:], out[2:]) > 1e-2
    assert relative_error(other_key[:2], out[:2]) < 1e-5
    assert relative_error(small(X, jnp.full(3, 3)), out) > 1e-2  # evaluation drops nothing


def test_dropout_takes_the_low_halves_of_an_images_words_and_then_the_high_ones() -> None:
    keys, x = jax.random.split(jax.random.key(4), 3), jnp.ones((3, 4, 5, 3))
    words = np.stack([np.asarray(jax.random.bits(key, (2, 5, 3))) for key in keys])
    halves = np.concatenate([words & 0xFFFF, words >> 16], axis=1)
    np.testing.assert_array_equal(layers.dropout(x, 0.25, keys) > 0, halves < 0.75 * 2**16)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_the_right_share(rate: float) -> None:
    """Kept values are scaled by what makes the mean exact; the share is within 5 deviations."""
    keys = jax.random.split(jax.random.key(3), 4)
    x = jnp.ones((4, 21, 21, 33))
    out = np.asarray(layers.dropout(x, rate, keys))
    kept = out > 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-4)
    deviation = np.sqrt(rate * (1 - rate) / out.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    agreement = (kept[0] == kept[1]).mean()
    assert abs(agreement - (rate**2 + (1 - rate) ** 2)) < 0.02  # images are independent
    np.testing.assert_array_equal(out[1:2], layers.dropout(x[1:2], rate, keys[1:2]))
    np.testing.assert_array_equal(layers.dropout(x, rate, None), x)
    first_blocks = itertools.islice(layers.per_block_keys(keys), 2)
    blocks = [np.asarray(layers.dropout(x, rate, block_keys)) for block_keys in first_blocks]
    assert ((blocks[0] > 0) == (blocks[1] > 0)).mean() < 0.99  # and so are blocks


def test_classes_act_image_by_image_and_none_is_the_null_class() -> None:
    null = small(X, jnp.array([3, 3, 3]))
    told = small(X, jnp.array([3, 0, 1]))
    assert relative_error(told[:1], null[:1]) < 1e-5
    assert relative_error(told[1:], null[1:]) > 1e-3
    untold = quick_jit(lambda: SMALL.apply({"params": small_params()}, X, LEVELS))()
    assert relative_error(untold, null) < 1e-5
    assert small_params()["ClassEmbed_0"]["embedding"].shape == (4, 32)


def test_bfloat16_computes_roughly_the_same_and_keeps_float32_outside() -> None:
    half = SMALL.clone(dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda p: half.apply({"params": p}, X, LEVELS))(small_params())
    convolutions: list[Any] = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv"]
    assert convolutions
    assert all(eqn.outvars[0].aval.dtype == jnp.bfloat16 for eqn in convolutions)
    out = quick_jit(lambda: half.apply({"params": small_params()}, X, LEVELS))()
    assert out.dtype == jnp.float32
    exact = small(X, jnp.full(3, 3))
    assert 1e-5 < relative_error(out, exact) < 0.05
    shapes = jax.eval_shape(
        functools.partial(models.init, half, image_shape=SHAPE), jax.random.key(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_remat_changes_what_is_stored_but_no_number() -> None:
    keys = jax.random.split(jax.random.key(2), 3)
    shallow = SMALL.clone(ch_mult=(1,), attn_resolutions=())
    params = random_params(shallow, SHAPE)

    def gradient(module: Any) -> Any:
        def loss(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(module.apply({"params": params}, x, LEVELS, keys)))

        residuals = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], X)
        stored = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        return quick_jit(jax.grad(loss))(X), stored

    plain, plain_size = gradient(shallow)
    lean, lean_size = gradient(shallow.clone(remat=True))
    assert relative_error(lean, plain) < 1e-5
    assert lean_size < 0.5 * plain_size
    names = [
        [entry.path for entry in official.correspondence(module.clone(num_labels=0), SHAPE)]
        for module in (SMALL, SMALL.clone(remat=True))
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("labels", [LEVELS, jnp.array([0, 4, 9])], ids=["sigma", "index"])
def test_scale_by_sigma_divides_by_the_noise_level(labels: jax.Array) -> None:
    """Integer labels count geometric levels from the highest; real ones are levels."""
    plain = models.DDPM(nf=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=())
    params = random_params(plain, SHAPE)
    scaled = plain.clone(scale_by_sigma=True, sigma_min=0.1, sigma_max=10.0, num_scales=10)
    run = quick_jit(lambda: [m.apply({"params": params}, X, labels) for m in (plain, scaled)])
    outs = run()
    sigmas = {0: 10.0, 4: 10.0 ** (1 - 8 / 9), 9: 0.1}
    expected = [sigmas.get(label.item(), label.item()) for label in labels]
    np.testing.assert_allclose(outs[1] * np.reshape(expected, (3, 1, 1, 1)), outs[0], rtol=1e-5)
    np.testing.assert_allclose(noise_levels(labels, 0.1, 10.0, 10), expected, rtol=1e-6)


@pytest.mark.slow
def test_ddpm_is_ncsnpp_with_ddpm_blocks() -> None:
    """From 128 channels on, where both norms have 32 groups."""
    fields: dict[str, Any] = {
        "nf": 128,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (2,),
    }
    ddpm = models.DDPM(**fields, centered=False)
    twin = models.NCSNpp(
        **fields,
        resblock_type="ddpm",
        fir_kernel=None,
        skip_rescale=False,
        progressive_input="none",
        embedding_type="positional",
        scale_by_sigma=False,
    )
    shape = (4, 4, 3)
    params = random_params(ddpm, shape)
    renamed = {
        name.replace("DDPM_", "DDPMpp_").replace("AttnBlock_", "AttnBlockpp_"): leaves
        for name, leaves in params.items()
    }
    x, t = X[:2, :4, :4], jnp.array([0.5, 700.0])
    outs = [
        quick_jit(functools.partial(module.apply, {"params": params}))(x, t)
        for module, params in ((ddpm, params), (twin, renamed))
    ]
    assert relative_error(outs[0], outs[1]) < 1e-5


class DDPMByHand(nn.Module):
    """DDPM (Ho et al. 2020, appendix B) of two levels, one block each, attention at height 2."""

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        act = layers.ACTIVATIONS["swish"]
        temb = noise_embedding(positional_embedding(labels, 32), 32, act)

        def block(h: jax.Array, *skip: jax.Array, width: int) -> jax.Array:
            return layers.ResnetBlockDDPM(width, act)(jnp.concatenate([h, *skip], -1), temb, None)

        entry = Conv(32)(2 * x - 1)
        high = block(entry, width=32)
        half = layers.Downsample(with_conv=True)(high)
        low = layers.AttnBlock()(block(half, width=64))
        h = block(layers.AttnBlock()(block(low, width=64)), width=64)
        h = layers.AttnBlock()(block(block(h, low, width=64), half, width=64))
        h = layers.Upsample(with_conv=True)(h)
        h = block(block(h, high, width=32), entry, width=32)
        return Conv(3)(layers.GroupNorm(32, act)(h))


def test_ddpm_is_its_blocks_one_after_the_other() -> None:
    ddpm = models.DDPM(
        nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,), centered=False
    )
    shape = (4, 8, 3)
    x, labels = jnp.asarray(np.random.default_rng(0).random((2, *shape))), jnp.array([3.0, 700.0])
    params = {"params": random_params(ddpm, shape)}
    run = quick_jit(lambda module: module.apply(params, x, labels), static_argnums=0)
    assert relative_error(run(ddpm), run(DDPMByHand())) < 1e-5


@pytest.mark.slow
def test_initial_output_is_nearly_zero_and_a_function_of_the_key() -> None:
    """The last convolution begins at 1e-10 of the usual variance: the score starts at nothing."""
    module = SMALL.clone(init_scale=0.0)
    params, again, other = (models.init(module, jax.random.key(s), SHAPE) for s in (0, 0, 1))
    out = quick_jit(lambda: module.apply({"params": params}, X, LEVELS))()
    assert 0 < np.abs(out).max() < 1e-3
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    kernels = [tree["Conv_0"]["kernel"] for tree in (params, other)]
    assert not np.array_equal(*kernels)
    # Uniform with variance 2 / (fan_in + fan_out).
    limit = np.sqrt(3 * 2 / (9 * (3 + 8)))
    assert 0.9 * limit < np.abs(kernels[0]).max() <= limit
    np.testing.assert_allclose(np.var(kernels[0]), limit**2 / 3, rtol=0.2)


def test_group_norm_is_accurate_far_from_zero() -> None:
    """Mean 3000 and deviation 1: E[x^2] - E[x]^2 in float32 would lose every digit."""
    rng = np.random.default_rng(0)
    x = (3000 + rng.standard_normal((2, 8, 8, 12))).astype(np.float32)
    module = layers.GroupNorm()
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)
    out: Any = module.apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = x.astype(np.float64).reshape(2, 64, 3, 4)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normed = centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, normed.reshape(x.shape) * scale + bias, atol=2e-3)


def test_attention_does_not_know_where_a_pixel_is() -> None:
    """A permutation of the pixels permutes the output."""
    module = layers.AttnBlockpp(init_scale=1.0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    order = np.random.default_rng(0).permutation(16)

    def permuted(images: jax.Array) -> jax.Array:
        return images.reshape(2, 16, 8)[:, order].reshape(images.shape)

    run = quick_jit(functools.partial(module.apply, {"params": params}))
    np.testing.assert_allclose(run(permuted(x)), permuted(run(x)), atol=1e-5)
    assert np.abs(run(x) - x).max() > 0.1


def test_activations_at_minus_one_and_two() -> None:
    expected = {
        "elu": (np.expm1(-1), 2),
        "relu": (0, 2),
        "lrelu": (-0.2, 2),
        "swish": (-1 / (1 + np.e), 2 / (1 + np.exp(-2))),
    }
    found = {name: act(jnp.array([-1.0, 2.0])) for name, act in layers.ACTIVATIONS.items()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_positional_embedding_is_sines_then_cosines() -> None:
    t = np.array([0.0, 0.5, 700.0])
    frequencies = 10000.0 ** (-np.arange(4) / 3)
    phase = t[:, None] * frequencies
    expected = np.concatenate([np.sin(phase), np.cos(phase), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(positional_embedding(jnp.asarray(t), 9), expected, atol=1e-4)


def test_positional_embeddings_of_several_numbers_stand_side_by_side() -> None:
    labels = jnp.array([[1.0, 20.0], [300.0, 4.0], [5.0, 60.0]])
    beside = [positional_embedding(labels[:, i], 9) for i in range(2)]
    found = positional_embedding(labels, 9)
    np.testing.assert_allclose(found, jnp.concatenate(beside, 1), rtol=1e-6)


def test_a_residual_is_a_sum_that_may_keep_the_variance() -> None:
    x, h = jnp.full((1, 2, 2, 1), 3.0), jnp.full((1, 2, 2, 1), 1.0)
    np.testing.assert_allclose(layers.residual(x, h, False), 4.0)
    np.testing.assert_allclose(layers.residual(x, h, True), 4.0 / np.sqrt(2.0), rtol=1e-6)


def test_the_pyramid_joins_the_features_by_sum_or_beside_them() -> None:
    rng = np.random.default_rng(0)
    pyramid, h = (rng.normal(size=(2, 3, 4, c)).astype(np.float32) for c in (5, 6))
    for method, expected in (
        ("sum", lambda mapped: mapped + h),
        ("cat", lambda mapped: np.concatenate([mapped, h], 3)),
    ):
        module = layers.Combine(method)
        found, variables = module.init_with_output(jax.random.key(0), pyramid, h)
        (conv,) = variables["params"].values()
        mapped = np.einsum("bhwc,co->bhwo", pyramid, conv["kernel"][0, 0]) + conv["bias"]
        np.testing.assert_allclose(found, expected(mapped), atol=1e-5)


@pytest.mark.parametrize("fir_kernel", [None, (1, 3, 3, 1)])
def test_other_resolutions_have_as_many_channels(fir_kernel: Any) -> None:
    for module, shape in ((layers.Upsample, (2, 8, 12, 3)), (layers.Downsample, (2, 2, 3, 3))):
        resize = module(with_conv=True, fir_kernel=fir_kernel)
        found = jax.eval_shape(resize.init_with_output, jax.random.key(0), jnp.ones((2, 4, 6, 3)))
        assert found[0].shape == shape


def test_an_output_is_divided_by_each_images_own_noise_level() -> None:
    network = types.SimpleNamespace(
        scale_by_sigma=True, sigma_min=0.1, sigma_max=10.0, num_scales=3
    )
    labels, out = jnp.array([0, 2]), jnp.ones((2, 3, 4, 1))
    levels = noise_levels(labels, 0.1, 10.0, 3)
    found = over_noise_level(network, out, labels)
    np.testing.assert_allclose(found * levels[:, None, None, None], out, rtol=1e-6)
    assert float(levels[0]) != float(levels[1])


def config(**model: Any) -> ml_collections.ConfigDict:
    """A small NCSN++ config with changes to its section `model`."""
    path = next(path for path in golden_cases.networks("sd") if path.stem.startswith("a2"))
    stored = golden_cases.config(golden_cases.load(path)["config_json"])
    stored.model.update(model)
    return stored


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("nonlinearity", "gelu", "elu, lrelu, relu, swish"),
        ("resblock_type", "resnet", "biggan, ddpm"),
        ("progressive", "input_skip", "none, output_skip, residual"),
        ("progressive_input", "output_skip", "input_skip, none, residual"),
        ("progressive_combine", "mean", "cat, sum"),
        ("embedding_type", "learnt", "fourier, log_positional, positional"),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(key: str, value: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model.{key} '{value}'; known: {known}"):
        models.from_config(config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("name", "unet", "adm, ddpm, edm2, mlp, ncsn, ncsnpp, ncsnv2_128, .*, unet1d"),
        ("dtype", "float16", "bfloat16, float32"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(key: str, value: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model.{key} '{value}'; known: {known}"):
        models.from_config(config(**{key: value}))


REFINENETS = ("ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256")


@pytest.mark.parametrize(
    ("names", "valid"),
    [
        (("ncsnpp", "ddpm"), ["GroupNorm"]),
        (REFINENETS, ["InstanceNorm++"]),
        (("mlp", "transformer"), ["none", "GroupNorm"]),
    ],
)
def test_a_network_is_not_called_by_a_normalisation_that_it_does_not_have(
    names: tuple[str, ...], valid: list[str]
) -> None:
    for name in names:
        built = [models.from_config(config(name=name, normalization=norm)) for norm in valid]
        assert built == [built[0]] * len(valid)
        for norm in {"GroupNorm", "InstanceNorm", "InstanceNorm++", "none", ""}.difference(valid):
            refusal = (
                f"model.normalization is {norm!r}, which model.name={name!r} does not have; "
                f"valid values: {', '.join(valid)}"
            )
            with pytest.raises(ValueError, match=f"^{re.escape(refusal)}$"):
                models.from_config(config(name=name, normalization=norm))


def test_shapes_that_cannot_be_are_refused() -> None:
    def shapes(module: Any, size: int) -> None:
        official.parameter_shapes(module, (size, size, 3))

    with pytest.raises(ValueError, match="sides must be multiples of 2"):
        shapes(SMALL, 7)
    with pytest.raises(ValueError, match="132 channels do not divide into 32 groups"):
        shapes(SMALL.clone(nf=132), 8)
    with pytest.raises(ValueError, match="48 channels do not divide into 32 groups"):
        shapes(models.DDPM(nf=48), 8)
    with pytest.raises(ValueError, match="num_labels is 10; ncsn cannot be told classes"):
        models.from_config(config(name="ncsn", num_labels=10))


def test_options_of_the_config_reach_the_network() -> None:
    module = models.from_config(config(dtype="bfloat16", remat=True, num_labels=10, fir=True))
    assert module.dtype == jnp.bfloat16
    assert module.remat
    assert module.num_labels == 10
    assert module.fir_kernel == (1, 3, 3, 1)
    assert models.from_config(config(fir=False)).fir_kernel is None

    ncsn = config(name="ncsn", normalization="InstanceNorm++", num_classes=0)
    assert models.from_config(ncsn).num_classes == 1000
    ncsn.model.update(dtype="bfloat16", remat=True, pytorch=True)
    module = models.from_config(ncsn)
    assert (module.dtype, module.remat, module.pytorch) == (jnp.bfloat16, True, True)
    ncsn.model.update(name="ncsnv2_128", scale_by_sigma=True)
    assert models.from_config(ncsn).architecture == "128"
