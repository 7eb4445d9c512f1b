"""What the environment says about platforms: used, or refused in one line."""

import jax
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
