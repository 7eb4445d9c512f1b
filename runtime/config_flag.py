"""The flag --config before absl reads it: errors of the file and of the overrides, each by name."""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.util
import pathlib
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from configs.names import dotted
from runtime.errors import Refused, one_line
from runtime.stop import Stopped

FLAG = "config"


class Parser(flags.ArgumentParser[ConfigDict]):
    """The parser of the flag, which executes no file that `check` has executed."""

    def __init__(self) -> None:
        self.configs: dict[str, ConfigDict] = {}  # that were read and not yet taken

    def parse(self, argument: str) -> ConfigDict:
        """The config of a file, locked, which is the caller's to change."""
        config = self.configs.pop(argument) if argument in self.configs else read(argument)
        return config.lock()

    def flag_type(self) -> str:
        return "config object"


PARSER = Parser()


def define(words: str) -> None:
    """Defines the flag and its overrides."""
    config_flags.DEFINE_config_file(FLAG, None, words)
    flags.FLAGS[FLAG].parser = PARSER


def check(argv: Sequence[str]) -> None:
    """Refuses a config file that gives no config, and an override of a field that is not there.

    absl names the flag of a value that it cannot read by itself.

    Raises:
      Refused: says which file and line, or which argument.
    """
    config = None
    for value in _values(argv):
        config = PARSER.configs[value] = read(value)
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if config is None or not argument.startswith("-") or not name.startswith(f"{FLAG}."):
            continue
        field = name.removeprefix(f"{FLAG}.")
        try:
            config_path.get_value(field, config)
        except Exception as error:  # whatever a path of strange characters leads to
            raise Refused(f"{argument}: {unknown(field, config) or one_line(error)}") from error


def read(value: str) -> ConfigDict:
    """The config of "path" or "path:argument", as ml_collections reads it.

    Raises:
      Refused: it cannot be read, or is no config.
    """
    text, colon, argument = value.partition(":")
    path, what = pathlib.Path(text), f"--{FLAG}={text}"
    try:
        if not path.exists():
            raise Refused(f"{what}: there is no such file; see configs/")
        if not path.is_file():
            raise Refused(f"{what}: this is not a file; see configs/")
        loader = importlib.machinery.SourceFileLoader("config_of_the_command_line", text)
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise Refused(f"{what}: it defines no function get_config(); see configs/")
        config = module.get_config(*([argument] if colon else []))
    except (Refused, Stopped):
        raise
    except (Exception, SystemExit) as error:  # a config is a program, and may do anything
        kind = type(error).__name__
        raise Refused(
            f"{what}{_line(error, text)}: {kind}: {one_line(error, limit=200)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise Refused(
            f"{what}: get_config() returned {type(config).__name__}, not an ml_collections "
            "ConfigDict; see configs/"
        )
    return config


def unknown(field: str, config: ConfigDict) -> str:
    """That a config has no such field, with those whose names are like its; "" if it has."""
    known = dotted(config.to_dict())
    if field in known:
        return ""
    last = field.rpartition(".")[2]
    alike = [name for name in known if name.rpartition(".")[2] == last]
    alike += difflib.get_close_matches(field, known, 3, 0.8)
    names = ", ".join(dict.fromkeys(alike[:3]))
    hint = f"like it are {names}" if names else "docs/configs.md has all"
    return f"there is no field config.{field}; {hint}"


def _values(argv: Sequence[str]) -> Iterator[str]:
    """The values of the flag itself, "--config=value" or "--config value"."""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == FLAG and (equals or following):
            yield value if equals else following


def _line(error: BaseException, path: str) -> str:
    """The line of the file at which the error arose, in words, if one is known."""
    number = None
    if isinstance(error, SyntaxError) and error.filename and path in error.filename:
        number = error.lineno
    else:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if path in f.filename]
        number = lines[-1] if lines else None
    return f", line {number}" if number else ""
