"""The share of a chip's peak rate: FLOPs of a device, counted once for all steps of a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import chips
from training import utilisation


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_flops_are_those_of_one_step_on_one_device(monkeypatch, count, steps):
    """A product of [B, D] and [D, D] has 2 B D^2 of them."""
    monkeypatch.setattr(chips, "of_kind", lambda kind: chips.CHIPS["v5e"])
    size, share = 64, 8

    def call(matrix, batches):
        return jax.lax.scan(lambda matrix, batch: (matrix, batch @ matrix), matrix, batches)

    pmapped = jax.pmap(call, axis_name="devices", devices=jax.local_devices()[:count])
    arguments = (
        jax.ShapeDtypeStruct((count, size, size), jnp.float32),
        jax.ShapeDtypeStruct((count, steps, share, size), jnp.float32),
    )
    seconds = utilisation.seconds_at_peak(pmapped, arguments, parts=3)
    assert seconds is not None
    np.testing.assert_allclose(seconds, 3 * 2 * share * size**2 / 197e12, rtol=0.01)


def test_other_devices_have_no_peak_rate_that_is_known():
    assert utilisation.seconds_at_peak(None, (), 1) is None
    assert chips.of_kind("cpu") is None
    assert chips.of_kind("NVIDIA H100 PCIe") is None


@pytest.mark.parametrize(("kind", "name"), sorted(chips.KINDS.items()))
def test_kinds_of_devices_are_chips(kind, name):
    assert chips.of_kind(kind) is chips.CHIPS[name]
