"""A config file that gives no config, and an override of no field, are refused by name and line."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from runtime import config_flag
from runtime.errors import Refused
from tests import tiny

GOOD = "from configs.quickstart import get_config\n"

FILES: dict[str, tuple[bytes, str]] = {
    "syntax": (b"x = 1\ndef get_config(:\n", "line 2: SyntaxError"),
    "import": (b"\nimport no_such_module\n", "line 2: ModuleNotFoundError: .*no_such_module"),
    "raises": (b"def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
    "raises_value": (b"def get_config():\n    raise ValueError('a\\nb')\n", "line 2: Val.*: a b"),
    "raises_os": (b"def get_config():\n    open('/absent/x')\n", "line 2: FileNotFoundError"),
    "absent": (b"def config():\n    return 1\n", r"defines no function get_config\(\)"),
    "no_function": (b"get_config = 3\n", r"defines no function get_config\(\)"),
    "arguments": (b"def get_config(a, b):\n    pass\n", "TypeError.*missing 2"),
    "dict": (b"def get_config():\n    return {}\n", r"get_config\(\) returned dict"),
    "none": (b"def get_config():\n    pass\n", r"get_config\(\) returned NoneType"),
    "picture": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "SyntaxError|ValueError"),
    "null": (b"x = 1\n\x00\n", "null bytes"),
    "encoding": ("x = 'ä'\n".encode("latin-1"), "SyntaxError.*utf-8"),
    "recursion": (b"def get_config():\n    return get_config()\n", "line 2: RecursionError"),
    "exits": (b"import sys\nsys.exit(0)\n", "line 2: SystemExit"),
    "indentation": (b"def get_config():\nreturn 1\n", "line 2: IndentationError"),
    "empty": (b"", r"defines no function get_config\(\)"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_broken_config_is_named_with_its_line(kind: str, tmp_path: pathlib.Path) -> None:
    content, pattern = FILES[kind]
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        config_flag.check(["main.py", f"--config={path}", "--config.model.nf=8"])
    assert re.search(pattern, str(refused.value)), str(refused.value)
    assert str(refused.value).startswith(f"--config={path}")


def test_a_config_is_executed_once(tmp_path: pathlib.Path) -> None:
    """It may take long, or do something."""
    path = tmp_path / "config.py"
    path.write_text(f"open({str(tmp_path / 'log')!r}, 'a').write('x')\n{GOOD}")
    argv = ["main.py", f"--config={path}", "--config.model.nf=8"]
    for count in (1, 2):  # each command line anew
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values["config"].parser = config_flag.PARSER
        config_flag.check(argv)
        with mock.patch.object(sys, "argv", argv):  # where config_flags looks for overrides
            values(argv)
        config: Any = values["config"].value
        assert (config.model.nf, config.is_locked) == (8, True)
        assert (tmp_path / "log").read_text() == count * "x"


@pytest.mark.parametrize("path", [".", "configs", "absent.py", ""])
def test_what_is_no_file_is_no_config(path: str) -> None:
    with pytest.raises(Refused, match=re.escape(f"--config={path}: ")):
        config_flag.read(path)


@pytest.mark.parametrize(
    "wrong",
    [
        "--config.training.batchsize=8",
        "--config.modle.nf=8",
        "--config.model.nf.x=8",
        "--config.=1",
    ],
)
@pytest.mark.parametrize("equals", [True, False])
def test_an_override_of_no_field_is_blamed_alone(
    wrong: str, equals: bool, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    flag = [f"--config={path}"] if equals else ["--config", str(path)]
    with pytest.raises(Refused, match=f"^{re.escape(wrong)}: "):
        config_flag.check(["main.py", *flag, "--config.model.nf=8", wrong, "--config.seed=1"])
    config_flag.check(["main.py", *flag, "--config.model.nf=8", "--config.seed", "1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "data.foo",
            r"no field config\.data\.foo; config\.data has cache, centered, crop, data_dir, ",
        ),
        (
            "data.imagesize",
            r"no field config\.data\.imagesize; the nearest is config\.data\.image_size",
        ),
        ("data.n_iters", r"field config\.data\.n_iters; the nearest is config\.training\.n_iters$"),
        ("modle.nf", r"there is no field config\.modle; the nearest is config\.model$"),
        ("model.nf.x", r"config\.model\.nf is 8 and has no fields$"),
        ("data.", r"there is no field config\.data\.; config\.data has cache, "),
        ("model.nf", "^$"),
    ],
)
def test_the_field_that_is_not_there_is_named_with_the_nearest(name: str, message: str) -> None:
    assert re.search(message, config_flag.absence(tiny.config(), name))


@pytest.mark.parametrize(
    "wrong",
    [
        "--config.training.n_iters=many",
        "--config.model.nonlinearity.x=1",
        "--config.model.ch_mult=(1,",
        "--config.model.fir=perhaps",
        "--config.optim=3",  # after --config.optim.warmup=2
    ],
)
def test_a_wrong_value_is_blamed_on_its_own_flag(
    wrong: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path, "train", wrong))
    assert (code, len(lines)) == (2, 1), lines
    assert re.search(re.escape(wrong.removeprefix("--")) + "|config.optim\\b", lines[0]), lines
    assert "model.nf" not in lines[0]
