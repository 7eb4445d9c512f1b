"""Accelerators by name: memory, peak rates and links of one chip, from their makers' data sheets.

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (peak compute, HBM capacity and bandwidth,
inter-chip interconnect per chip, in one direction). GPUs: NVIDIA's data sheets of A100 80GB SXM,
H100 SXM and H200 SXM (dense tensor-core rates, NVLink's total halved) and the network of DGX
systems, one port per GPU (HDR 200 Gb/s, NDR 400 Gb/s). Float32 convolutions and matrix products
run, by JAX's default precision, in one bfloat16 pass on a TPU and in TF32 on these GPUs.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One chip.

    Attributes:
      words: what it is called.
      platform: "tpu" or "cuda".
      memory: bytes of HBM.
      bandwidth: of the HBM, in bytes/s.
      bfloat16, float32: peak rates of matrix products of these types, in FLOP/s.
      links: bytes/s that leave the chip for others nearby.
      network: bytes/s that leave it for other machines, where these have no such links.
      sides: the number of sides of a TPU slice: AxB or AxBxC.
      cores: options of the compiler's topology that make one device of a chip.
      target: XLA's description of a GPU, in its text form.
    """

    words: str
    platform: str
    memory: int
    bandwidth: float
    bfloat16: float
    float32: float
    links: float
    network: float = 0.0
    sides: int = 0
    cores: str = "default"
    target: str = ""

    def rate(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in `dtype`, "float32" or "bfloat16"."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32

    @property
    def usable(self) -> int:
        """Bytes that JAX takes: on a GPU three quarters, unless it is told otherwise."""
        return self.memory * 3 // 4 if self.platform == "cuda" else self.memory


def _target(
    description: str, cores: int, fpus: int, shared: int, l2: int, clock: float, memory: int,
    bandwidth: int, capability: tuple[int, int],
) -> str:  # fmt: skip
    """XLA's description of a GPU: `GpuTargetConfigProto` as text."""
    major, minor = capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024} core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{description}"
"""


CHIPS = {
    "v4": Chip(
        "TPU v4", "tpu", 32 * GIB, 1.2e12, 275e12, 275e12, 300e9, sides=3, cores="megacore"
    ),
    "v5e": Chip("TPU v5e", "tpu", 16 * GIB, 819e9, 197e12, 197e12, 200e9, sides=2),
    "v5p": Chip(
        "TPU v5p", "tpu", 95 * GIB, 2.765e12, 459e12, 459e12, 600e9, sides=3, cores="megacore"
    ),
    "v6e": Chip("TPU v6e", "tpu", 32 * GIB, 1.6e12, 918e12, 918e12, 400e9, sides=2),
    "a100": Chip(
        "A100 80GB", "cuda", 85100068864, 2.039e12, 312e12, 156e12, 300e9, 25e9,
        target=_target("NVIDIA A100-SXM4-80GB", 108, 64, 167936, 41943040, 1.41, 85100068864,
                       2039040000000, (8, 0)),
    ),
    "h100": Chip(
        "H100 80GB", "cuda", 84978434048, 3.35e12, 989e12, 494.5e12, 450e9, 50e9,
        target=_target("NVIDIA H100 80GB HBM3", 132, 128, 233472, 52428800, 1.98, 84978434048,
                       3352320000000, (9, 0)),
    ),
    "h200": Chip(
        "H200 141GB", "cuda", 151397597184, 4.8e12, 989e12, 494.5e12, 450e9, 50e9,
        target=_target("NVIDIA H200 141GB HBM3e", 132, 128, 233472, 52428800, 1.98, 151397597184,
                       4800000000000, (9, 0)),
    ),
}  # fmt: skip

KINDS = {  # what JAX calls the kind of a device
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def of_kind(kind: str) -> Chip | None:
    """The chip that JAX calls by this name (`jax.Device.device_kind`); None: another one."""
    return CHIPS.get(KINDS.get(kind, ""))
