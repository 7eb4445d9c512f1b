"""Configs: the schema of all fields, the check that every run begins with, and stored configs.

`schema` has every field once, `defaults` what families of configs share; `configs/<name>.py` and
the sub-folders are the configs themselves, each with a `get_config()` for `--config`.
"""

from configs.check import check
from configs.names import lookup
from configs.stored import complete, config_differences, from_file, from_stored, load, shipped

__all__ = [
    "check",
    "complete",
    "config_differences",
    "from_file",
    "from_stored",
    "load",
    "lookup",
    "shipped",
]
