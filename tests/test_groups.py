"""Equal operations carried out as one: the same bits, from a program that does not grow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.mlp import MLP
from runtime import groups


def bits(leaf: Any) -> tuple[Any, ...]:
    """Dtype, shape and bytes of an array or of typed keys."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def assert_same(function: Any, *args: Any) -> None:
    """The tree of `evaluate` is that of `jax.jit`."""
    found, expected = groups.evaluate(function, *args), jax.jit(function)(*args)
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(expected))
    assert [*map(bits, jax.tree.leaves(found))] == [*map(bits, jax.tree.leaves(expected))]


def first_state(key: jax.Array, count: int) -> Any:
    """Draws of all kinds, constants, copies and keys of `count` layers."""
    drawn = {}
    for i in range(count):
        own = jax.random.fold_in(key, i)
        drawn[i] = {
            "uniform": jax.random.uniform(own, (3, 4), minval=-1.0),
            "normal": 0.1 * jax.random.normal(own, (5,)),
            "truncated": jax.random.truncated_normal(own, -2.0, 2.0, (2, 2)),
            "rows": jnp.full(3, 0.5) + jnp.arange(3),
            "number": jnp.int32(7),
        }
    zeros = jax.tree.map(jnp.zeros_like, drawn)
    return {"drawn": drawn, "copy": jax.tree.map(jnp.copy, drawn), "zeros": zeros, "key": key}


@pytest.mark.full_compilation
def test_same_bits_as_jit() -> None:
    assert_same(functools.partial(first_state, count=4), jax.random.key(3))


@pytest.mark.full_compilation
def test_weights_of_a_network_have_the_same_bits() -> None:
    module = MLP(nf=16, num_res_blocks=3)
    assert_same(functools.partial(models.init, module, image_shape=(2,)), jax.random.key(1))


def test_values_of_one_kind_that_are_used_in_different_ways() -> None:
    """Some rows of a stack, in another order, twice, and together with what is no row."""

    def function(x: jax.Array, y: jax.Array) -> Any:
        a, b, c = jnp.sin(x), jnp.sin(y), jnp.sin(x + y)
        return [a * b, b * a, c * c, a * x, jnp.cos(c), jnp.cos(a), a, 2.0, x]

    assert_same(function, np.float32(0.3), np.float32(1.1))


def test_what_no_output_needs_is_left_out() -> None:
    def refuse(x: np.ndarray) -> np.ndarray:
        raise AssertionError

    def function(x: jax.Array) -> Any:
        jax.pure_callback(refuse, jax.ShapeDtypeStruct((), jnp.float32), x)
        return x + 1

    assert_same(lambda x: x + 1, np.float32(1))
    assert groups.evaluate(function, np.float32(1)) == 2


def test_the_program_does_not_grow_with_the_number_of_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, real = [], jax.jit

    def counted(function: Any, **options: Any) -> Any:
        def run(*args: Any) -> Any:
            sizes.append(len(jax.make_jaxpr(function)(*args).eqns))
            return real(function, **options)(*args)

        return run

    for count in (2, 10):
        traced = real(functools.partial(first_state, count=count)).trace(jax.random.key(0))
        function = jax.extend.core.jaxpr_as_fun(traced.jaxpr)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "jit", counted)
            groups.evaluate(function, jax.random.key(0))
    assert sizes[0] == sizes[1]
