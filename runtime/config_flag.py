"""The flag --config before absl reads it: errors of the file and of the overrides, each by name."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from configs import stored
from configs.names import dotted, lookup, nearest
from runtime.errors import Refused, one_line
from runtime.stop import Stopped

flags.disclaim_key_flags()  # what is defined here is the caller's

FLAG = "config"


class Choice(flags.EnumParser):
    """A parser of one of several names, which tells the nearest to an unknown one."""

    def parse(self, argument: str) -> str:
        lookup(dict.fromkeys(self.enum_values), argument, "value")
        return argument


def define_choice(name: str, choices: Sequence[str], words: str) -> None:
    """Defines a flag that is one of several names, or None."""
    flags.DEFINE_enum(name, None, list(choices), words)
    flags.FLAGS[name].parser = Choice(list(choices))


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
    stray = [argument for argument in argv[1:] if re.match(rf"--?(no)?{FLAG}\.", argument)]
    if stray and not any(_values(argv)):
        raise Refused(f"{stray[0]}: there is no --{FLAG} that it could override")
    for value in _values(argv):
        config = PARSER.configs[value] = read(value)
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if config is None or not argument.startswith("-") or not name.startswith(f"{FLAG}."):
            continue
        try:
            config_path.get_value(name.removeprefix(f"{FLAG}."), config)
        except Exception as error:  # whatever a path of strange characters leads to
            reason = absence(config, name.removeprefix(f"{FLAG}.")) or one_line(error)
            raise Refused(f"{argument}: {reason}") from error


def absence(config: ConfigDict, name: str) -> str:
    """Why there is no field of a dotted name, with the names that are nearest; "": there is."""
    above, value = FLAG, config
    for part in name.split("."):
        if not isinstance(value, ConfigDict):
            return f"{above} is {value!r:.60} and has no fields"
        full = f"{above}.{part}"
        if part not in value:
            fields = sorted(value)
            elsewhere = [f"{FLAG}.{f}" for f in dotted(config.to_dict()) if f.endswith(f".{part}")]
            near = [f"{above}.{field}" for field in nearest(part, fields, most=3)]
            advice = (
                f"the nearest is {' or '.join(near or elsewhere)}"
                if near or elsewhere
                else f"{above} has {', '.join(fields)}"
            )
            return f"there is no field {full}; {advice}"
        above, value = full, value[part]
    return ""


def read(value: str) -> ConfigDict:
    """The config of "path" or "path:argument", as ml_collections reads it.

    Raises:
      Refused: it cannot be read, or is no config.
    """
    given, colon, argument = value.partition(":")
    path, what = located(given), f"--{FLAG}={given}"
    text = str(path)
    try:
        if not path.exists():
            near = nearest(_name(given), stored.names())
            advice = f"the nearest is {near[0]}" if near else "see configs/"
            raise Refused(f"{what}: there is no such file; {advice}")
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


def located(given: str) -> pathlib.Path:
    """The file of a config: a path, from the current folder on, or else the name of one in the
    project's configs/, as "quickstart", "vp/cifar10_ddpmpp" or "configs/quickstart.py"."""
    path = pathlib.Path(given)
    shipped = stored.FOLDER / f"{_name(given)}.py"
    return shipped if not path.is_file() and shipped.is_file() else path


def _name(given: str) -> str:
    return given.removeprefix("configs/").removesuffix(".py")


def _values(argv: Sequence[str]) -> Iterator[str]:
    """The values of the flag itself, "--config=value" or "--config value"."""
    for argument, following in itertools.pairwise([*argv[1:], ""]):
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
