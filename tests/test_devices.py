"""What the environment says about platforms: used, or refused in one line."""

from typing import Any

import jax
import numpy as np
import pytest

from runtime import devices
from runtime.errors import Refused


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError("Unable to initialize backend 'tpu': no\nlibtpu (set JAX_PLATFORMS='')"),
            "Unable to initialize backend 'tpu': no libtpu",
        ),
        (AssertionError(), "its plugin is not installed"),
    ],
)
def test_a_platform_that_is_not_there_is_refused_and_others_are_named(monkeypatch, error, why):
    def fail():
        raise error

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    monkeypatch.setattr(jax, "devices", fail)
    jax.config.update("jax_platforms", "tpu")
    try:
        with pytest.raises(Refused, match=f"JAX_PLATFORMS=tpu: {why}; without it, .* cpu on this"):
            devices.start_platform()
    finally:
        jax.config.update("jax_platforms", before)


def test_between_processes_a_mean_is_one_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the means one by one, and one operand of one collective."""
    count = jax.local_device_count()
    tree = {"a": np.arange(count * 6.0, dtype=np.float32).reshape(count, 2, 3)}
    tree["b"] = np.square(np.arange(count, dtype=np.float32))

    def mean(tree: Any) -> Any:
        return devices.mean(tree, devices.AXIS)

    plain = jax.pmap(mean, devices.AXIS)(tree)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    text = str(jax.make_jaxpr(mean, axis_env=[(devices.AXIS, count)])(tree))
    assert text.count("psum") == 1
    assert "concatenate" in text
    monkeypatch.undo()
    for name, array in tree.items():
        np.testing.assert_array_equal(plain[name][0], array.mean(0))
