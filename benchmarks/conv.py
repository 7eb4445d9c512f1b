"""Forward, dx and dw of a 3x3 convolution: `models.ops.conv` beside XLA's own, alone and in a scan.

python benchmarks/conv.py            # milliseconds; the last column is what the scan gains
"""

import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
from jax import lax

from models.ops.conv import conv

SHAPES = [(128, 8, 32), (128, 8, 64), (64, 14, 64), (16, 32, 32), (4, 32, 128), (4, 16, 256)]
LENGTH = 2


def xla_conv(x: jax.Array, w: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


def milliseconds(function: Callable, *operands: jax.Array) -> float:
    """The fastest of three runs after the first, which compiles."""
    run = jax.jit(function)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(run(*operands))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def measure(convolution: Callable, x: jax.Array, w: jax.Array) -> tuple[float, float, float]:
    """Forward; forward with dx and dw; the same as one step of a scan."""

    def step(x, w):
        y, pullback = jax.vjp(convolution, x, w)
        return y, *pullback(y)

    def scan(x, w):
        def body(carry, _):
            x, w = carry
            y, dx, dw = step(x, w)
            return (x + 1e-3 * (y + dx), w + 1e-6 * dw), None

        return lax.scan(body, (x, w), None, LENGTH)[0]

    return (
        milliseconds(convolution, x, w),
        milliseconds(step, x, w),
        milliseconds(scan, x, w) / LENGTH,
    )


def main() -> None:
    print(f"{'batch side channels':>20} {'XLA: fwd  all   scan':>26} {'ours: fwd  all   scan':>26}")
    for batch, side, channels in SHAPES:
        x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
        w = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
        xla, ours = measure(xla_conv, x, w), measure(conv, x, w)
        cells = [f"{value:8.1f}" for value in (*xla, *ours)]
        gain = f"{xla[2] / ours[2]:6.0f} x"
        print(f"{batch:8} {side:4} {channels:6}", *cells, gain, flush=True)


if __name__ == "__main__":
    main()
