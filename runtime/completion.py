"""Completion of command lines by bash, zsh and fish: a script each, with all names in it.

source <(score-sde --completion=bash)          # in ~/.bashrc
source <(score-sde --completion=zsh)           # in ~/.zshrc, after compinit
score-sde --completion=fish | source           # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence

from configs.rules import Field

COMMAND = "score-sde"
FOLDERS = ("workdir",)  # flags whose values are folders
FILES = ("config", "source", "target")  # flags whose values may be files

Words = Mapping[str, str]
Values = Mapping[str, Sequence[str]]

BASH = r"""# Completion of score-sde by bash; made by `score-sde --completion=bash`.
_score_sde() {
    local line="${COMP_LINE:0:COMP_POINT}" word flag="" value=""
    word="${line##*[[:space:]]}"
    local before="${line%"$word"}"
    before="${before%"${before##*[![:space:]]}"}"
    local previous="${before##*[[:space:]]}"
    COMPREPLY=()
    if [[ "$word" == -*=* ]]; then
        flag="${word%%=*}" value="${word#*=}"
    elif [[ "$previous" == -* && "$previous" != *=* && "$word" != -* ]]; then
        flag="$previous" value="$word"
    fi
    flag="${flag#-}" flag="${flag#-}"
    case "$flag" in
        "") ;;
@CASES@
        *) return ;;
    esac
    if [[ -z "$flag" ]]; then
        COMPREPLY=($(compgen -W "@FLAGS@" -- "$word"))
        if [[ "${#COMPREPLY[@]}" -eq 1 && "${COMPREPLY[0]}" == *= ]]; then
            compopt -o nospace 2>/dev/null
        fi
    elif [[ "$word" == -*=* && "$COMP_WORDBREAKS" != *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]/#/${word%%=*}=}")
    fi
}
complete -F _score_sde score-sde
"""

ZSH = r"""#compdef score-sde
# Completion of score-sde by zsh; made by `score-sde --completion=zsh`.
_score_sde() {
    local word="${words[CURRENT]}" previous="${words[CURRENT-1]}" flag=""
    if [[ "$word" == -*=* ]]; then
        flag="${word%%=*}"
        compset -P '*='
    elif [[ "$previous" == -* && "$previous" != *=* && "$word" != -* ]]; then
        flag="$previous"
    fi
    flag="${flag#-}" flag="${flag#-}"
    case "$flag" in
        "")
            local -a open=(@OPEN@) closed=(@CLOSED@)
            compadd -S '' -- $open
            compadd -- $closed ;;
@CASES@
    esac
}
compdef _score_sde score-sde
"""


def script(
    shell: str, flags: Words, switches: Collection[str], values: Values, fields: Mapping[str, Field]
) -> str:
    """The script that makes a shell complete the program's flags and fields, and their values.

    Args:
      shell: a key of `SCRIPTS`.
      flags: the flags and their words.
      switches: those of them that need no value.
      values: names that the value of a flag may be.
      fields: of the config, by their dotted names.
    """
    of_fields = {
        f"config.{name}": ("true", "false")
        for name, field in fields.items()
        if isinstance(field.default, bool)
    }
    words = {**flags, **{f"config.{name}": field.words for name, field in fields.items()}}
    return SCRIPTS[shell](words, switches, {**of_fields, **values})


def _bash(words: Words, switches: Collection[str], values: Values) -> str:
    cases = []
    for name in words:
        known = " ".join(values.get(name, ()))
        replies = [f'COMPREPLY=($(compgen -W "{known}" -- "$value"))'] if known else []
        if name in FILES:
            replies.append('COMPREPLY+=($(compgen -f -- "$value"))')
        if name in FOLDERS:
            replies.append('COMPREPLY=($(compgen -d -- "$value"))')
        if name in (*FILES, *FOLDERS):
            replies.append("compopt -o filenames 2>/dev/null")
        if replies:
            cases.append(f"        {name}) {'; '.join(replies)} ;;")
        elif name in switches:
            cases.append(f'        {name}) flag="" ;;')
    options = " ".join(_options(words, switches))
    return BASH.replace("@CASES@", "\n".join(cases)).replace("@FLAGS@", options)


def _zsh(words: Words, switches: Collection[str], values: Values) -> str:
    cases = []
    for name in words:
        known = " ".join(map(shlex.quote, values.get(name, ())))
        replies = [f"compadd -- {known}"] if known else []
        replies += ["_files"] * (name in FILES) + ["_files -/"] * (name in FOLDERS)
        if replies:
            cases.append(f"        {name}) {'; '.join(replies)} ;;")
    options = _options(words, switches)
    opened = " ".join(option for option in options if option.endswith("="))
    closed = " ".join(option for option in options if not option.endswith("="))
    text = ZSH.replace("@CASES@", "\n".join(cases))
    return text.replace("@OPEN@", opened).replace("@CLOSED@", closed)


def _fish(words: Words, switches: Collection[str], values: Values) -> str:
    lines = ["# Completion of score-sde by fish; made by `score-sde --completion=fish`."]
    for name, text in words.items():
        parts = [f"complete -c {COMMAND} -l {name} -d {_quoted(text)}"]
        if name not in switches:
            parts.append("-r" if name in FILES or name in FOLDERS else "-x")
        if known := values.get(name):
            parts.append(f"-a {_quoted(' '.join(known))}")
        if name in FOLDERS:
            parts.append("-a '(__fish_complete_directories)'")
        lines.append(" ".join(parts))
    return "\n".join(lines)


def _options(words: Words, switches: Collection[str]) -> list[str]:
    """All flags as they are typed, those that need a value with "="."""
    help_of = ["--help", "--config.help"]
    options = [f"--{name}" if name in switches else f"--{name}=" for name in words]
    return options + help_of


def _quoted(text: str) -> str:
    """A text for fish, in single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Words, Collection[str], Values], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
