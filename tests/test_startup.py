"""What the program imports before it has anything to do with it: nothing that takes long."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Packages that a command line alone does not need, and what a first compilation does not.
OF_MODES = {"jax", "flax", "numpy", "optax", "PIL", "scipy", "data", "models", "sampling"}
LATER = {
    *("tensorflow_datasets", "tensorflow", "matplotlib", "sklearn", "skimage", "scipy.ndimage"),
    *("orbax.checkpoint", "grain", "tensorboardX", "diffrax", "equinox", "lineax", "array_record"),
    *("jinja2", "fsspec", "requests", "datasets", "torch", "evaluation", "interop.convert"),
}
EXTRAS = {"tensorflow_datasets", "sklearn", "skimage", "threadpoolctl"}

PROGRAM = """
import sys
import main
print(sorted({of_modes!r} & set(sys.modules)))
from training import loop

def before_the_first_compilation(*arguments):
    print(sorted({later!r} & set(sys.modules)))
    raise SystemExit(0)

loop.new_or_resumed = before_the_first_compilation
try:
    main.main(sys.argv)
except SystemExit:
    from generation import sample

def before_the_first_sample(*arguments, **options):
    print(sorted({extras!r} & set(sys.modules)))
    raise SystemExit(0)

sample.Generator = before_the_first_sample
main.main([sys.argv[0], "--mode=sample", "--source=two-moons", "--workdir=" + {folder!r}])
"""


def test_what_takes_long_is_imported_where_it_is_used(tmp_path: pathlib.Path) -> None:
    """Of a training, by the time that it compiles its first program, and of the command line; a
    sampling, by the time that it draws, has imported no package that only an extra brings."""
    folder = str(tmp_path / "sampled")
    program = PROGRAM.format(of_modes=OF_MODES, later=LATER, extras=EXTRAS, folder=folder)
    command = [sys.executable, "-c", program, *tiny.arguments(tmp_path / "run", "train")[1:]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [*lines[:2], lines[-1]] == ["[]", "[]", "[]"]
    assert "two-moons" in lines[2]
