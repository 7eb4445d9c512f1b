"""Where fields of section `control` act: the methods and the operators that read them."""

from __future__ import annotations

import ml_collections

WITH_INTERVAL = ("classifier", "classifier_free", "autoguidance", "similarity", "contrast")

# The methods that read the fields.
METHODS: dict[str, tuple[str, ...]] = {
    "control.iterations control.damping": ("posterior",),
    "control.jump control.repeats": ("repaint",),
    "control.official": ("replace",),
    "control.data_std": ("pigdm", "daps", "twisted"),
    "control.eta": ("ddrm", "ddnm", "diffpir"),
    "control.ode_steps control.langevin_steps": ("daps",),
    "control.resample_below": ("twisted",),
    "control.particles": ("feynman_kac", "steering", "twisted"),
    "control.guide": ("classifier", "similarity", "contrast", "autoguidance"),
    "control.interval": WITH_INTERVAL,
    "control.parallel control.limit": ("classifier_free", "autoguidance"),
}
SCALED = (  # methods that read control.scale
    *("posterior", "dps", "pigdm", "tmpd", "diffpir", "feynman_kac", "steering", "gradient"),
    *WITH_INTERVAL,
)
OWN_STEPS = (  # methods that take steps of their own, and no sampler
    *("replace", "repaint", "dps", "ddrm", "ddnm", "diffpir", "daps", "twisted"),
    *("flow", "ddim", "sdedit", "feynman_kac", "steering"),
)
TASKS = (
    *("inpaint", "colorize", "super_resolution", "compressed_sensing", "deblur", "denoise"),
    "operator",
)

# The task that reads the fields, and the operator of control.task=operator that does.
OPERATORS: dict[str, tuple[str, str]] = {
    "control.mask control.mask_share": ("inpaint", "mask"),
    "control.factor": ("super_resolution", "average_pool"),
    "control.blur_std": ("deblur", "gaussian_blur"),
    "control.num_measurements": ("compressed_sensing", "random_measurements"),
    "control.clip_limit": ("", "clipping"),
    "control.jpeg_quality": ("", "jpeg"),
}


def measures(config: ml_collections.ConfigDict, task: str, operator: str) -> bool:
    """Whether the task is `task`, or "operator" with this operator."""
    asked = config.control.task
    return bool(asked == task or (asked == "operator" and config.control.operator == operator))


def words(task: str, operator: str) -> str:
    """Where `measures` holds."""
    first = f"control.task is {task}, or " if task else ""
    return f"{first}control.task is operator and control.operator is {operator}"
