"""The command line as people expect it: any order, the nearest name, lists, help, completion."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from absl.testing import flagsaver

import configs
import main
from configs import names, schema, stored, table
from runtime import answers, completion, config_flag, listing
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What `python main.py` prints and ends with 0, without an error."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *argv])
        flags.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as ended:
            main.main(["main.py", *argv])
    output = capsys.readouterr()
    assert not ended.value.code, output.err
    return output.out


def values_of(*argv: str) -> list[object]:
    """The values that the flags of a command line have."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *argv])
        flags.FLAGS.unparse_flags()
        assert main.parse_flags(["main.py", *argv]) == ["main.py"]
        config = flags.FLAGS.config
        fields = config.model.nf, config.optim.grad_clip, config.data.random_flip
        return [*fields, config.model.ch_mult, flags.FLAGS.mode, flags.FLAGS.workdir]


def test_flags_may_come_in_any_order_and_either_form() -> None:
    groups = [
        ("--config", "quickstart"),
        ("--config.optim.grad_clip", "-2.5"),
        ("--config.data.random_flip", "True", "--config.model.ch_mult", "(1,2)"),
        ("--mode", "train", "--config.model.nf=24", "--workdir=x"),
    ]
    expected = [24, -2.5, True, (1, 2), "train", "x"]
    for order in itertools.permutations(groups):
        assert values_of(*itertools.chain(*order)) == expected


def test_the_last_of_several_values_wins_wherever_the_config_stands() -> None:
    argv = ("--config.model.nf", "8", "--mode=train", "--config.model.nf=16", "--workdir=x")
    assert values_of(*argv, "--config=configs/digits/edm.py", "--config=quickstart")[0] == 16
    switched = ("--noconfig.data.random_flip", *argv, "--config=quickstart")
    assert values_of(*switched, "--config.data.random_flip")[2] is True
    assert values_of("--config.data.random_flip", *switched[1:], switched[0])[2] is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--mode=trian",), "unknown value 'trian'; known: control, demo, eval"),
        (("--mode=list", "--topic=sampler"), "(the nearest: samplers)"),
        (("--completion=bsh",), "(the nearest: bash)"),
        (("--wrokdir=x",), "Did you mean: workdir"),
        (("--config=vp/cifar10_ddpm",), "no such file; the nearest is vp/cifar10_ddpmpp"),
        (("--config=configs/quikstart.py",), "no such file; the nearest is quickstart"),
        (("--config.smapling.help",), "no field config.smapling; the nearest is config.sampling"),
        (("--config=quickstart", "--config.model.nff=8"), "the nearest is config.model.nf"),
        (("--config.model.nf=8", "--mode=train"), "no --config that it could override"),
        ((), "--mode is required"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(
    argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = tiny.run(capsys, "main.py", *argv)
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]


def test_the_nearest_of_a_table_is_told_whatever_its_case() -> None:
    with pytest.raises(ValueError, match=r"x 'DDMI'; known: ddim, pc \(the nearest: ddim\)$"):
        names.lookup({"pc": 1, "ddim": 2}, "DDMI", "x")
    with pytest.raises(ValueError, match=r"unknown x 'zzz'; known: ddim, pc$"):
        names.lookup({"pc": 1, "ddim": 2}, "zzz", "x")


def test_a_config_is_known_by_its_name_in_any_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = stored.FOLDER / "vp" / "cifar10_ddpmpp.py"
    for given in ("vp/cifar10_ddpmpp", "vp/cifar10_ddpmpp.py", "configs/vp/cifar10_ddpmpp.py"):
        assert config_flag.located(given) == shipped
        assert config_flag.read(given) == configs.load("vp/cifar10_ddpmpp")
    (tmp_path / "quickstart.py").write_text("from configs.digits.edm import get_config\n")
    assert config_flag.read("quickstart.py") == configs.load("digits/edm")  # a file here is first
    assert config_flag.read("quickstart") == configs.load("quickstart")


# --- what there is ---


@pytest.mark.parametrize("topic", main.TOPICS)
def test_every_entry_has_a_sentence(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(main.TOPICS, topic)
    title, *lines = capsys.readouterr().out.splitlines()
    entries = listing.lines(main.TOPICS[topic])
    assert title == f"{topic.replace('_', ' ')} ({len(entries)})"
    assert [line.split()[0] for line in lines] == list(entries)
    assert all(len(words) > 5 and "\n" not in words for words in entries.values()), entries
    assert len(set(entries.values())) > 1


def test_the_listed_configs_are_those_that_are_shipped() -> None:
    assert set(listing.lines(main.TOPICS["configs"])) == set(configs.shipped())


def test_all_topics_are_listed_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show({name: main.TOPICS[name] for name in ("sdes", "configs")})
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.split(" (")[0] for block in blocks] == ["sdes", "configs"]
    assert re.search(r"^  subvpsde +Sub-VP: ", blocks[0], re.MULTILINE)


def test_a_first_sentence_ends_where_a_sentence_does() -> None:
    text = "Solved by A. Author (eq. 3; T. Karras et al. 2022).\nMore, e.g. this. And that."
    assert names.first_sentence(text).endswith("2022).")
    assert names.first_sentence("No point\nat all\n\nSecond.") == "No point at all"


def test_the_help_of_fields_has_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--config.help")
    named = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert named == list(schema.fields())
    section = told(capsys, "--config.optim.help").splitlines()
    assert section[0] == f"optim: {schema.SECTIONS['optim'].words}"
    assert len(section) == 1 + len(schema.SECTIONS["optim"].fields)
    assert table.listing("model.nf") == told(capsys, "--config.model.nf.help").rstrip("\n")


def test_the_help_of_fields_has_the_values_of_the_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ("--config.model.nf.help", "--config.model.nf=48", "--config=quickstart")
    assert told(capsys, *argv).split()[:2] == ["model.nf", "48"]
    assert "default: 128" in told(capsys, *argv)
    assert "default" not in told(capsys, "--config.model.nf.help")


def test_the_version_is_that_of_the_stack(capsys: pytest.CaptureFixture[str]) -> None:
    first, *lines = told(capsys, "--version").splitlines()
    assert first.startswith("score-sde ")
    for package in answers.STACK:
        assert f"{package} {importlib.metadata.version(package)}" in lines


def test_the_version_has_the_commit_where_git_knows_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ROOT", tmp_path)
    assert answers.commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    known = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    said = answers.commit().removeprefix(", commit ")
    assert len(said) >= 7
    assert known.stdout.startswith(said)


# --- completion ---


def shell_script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    return told(capsys, f"--completion={shell}")


@pytest.fixture
def completed(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path):  # type: ignore[no-untyped-def]
    """A function from what is typed to what bash offers for the last word, as readline asks."""
    if not shutil.which("bash"):
        pytest.skip("bash is not here")
    script = tmp_path / "score-sde.bash"
    script.write_text(shell_script("bash", capsys))
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.py").touch()
    program = (
        'source "$1"; [[ -n "$3" ]] && COMP_WORDBREAKS="$3"; COMP_LINE="$2"; COMP_POINT=${#2}; '
        'complete -p score-sde >/dev/null && { _score_sde; printf "%s\\n" "${COMPREPLY[@]}"; }'
    )

    def offers(typed: str, breaks: str = "") -> list[str]:
        command = ["bash", "--norc", "-c", program, "bash", str(script), typed, breaks]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert not ended.stderr, ended.stderr
        return [line for line in ended.stdout.splitlines() if line]

    return offers


def test_bash_completes_modes_flags_configs_and_fields(completed) -> None:  # type: ignore[no-untyped-def]
    assert completed("score-sde --mode=tr") == ["train"]
    assert completed("score-sde --mode ") == list(main.MODES)
    assert completed("score-sde --wor") == ["--workdir="]
    assert completed("score-sde --mode=list --topic=s") == ["sdes", "samplers"]
    assert completed("score-sde --config=qui") == ["quickstart"]
    assert completed("score-sde --config=vp/cifar10_ddpmpp_d") == [
        "vp/cifar10_ddpmpp_deep_continuous"
    ]
    assert completed("score-sde --config=mi") == ["mine.py"]
    assert completed("score-sde --workdir=r") == ["runs"]
    assert completed("score-sde --config=quickstart --config.optim.l") == ["--config.optim.lr="]
    assert completed("score-sde --config.data.random_flip=") == ["true", "false"]
    assert completed("score-sde --profile --mo") == ["--mode="]
    assert completed("score-sde --source=edm/cifar10-cond-vp") == ["edm/cifar10-cond-vp"]
    assert completed("score-sde --config.model.nf=") == []
    offered = set(completed("score-sde --config."))
    assert offered == {f"--config.{name}=" for name in schema.fields()} | {"--config.help"}


def test_bash_completes_where_an_equals_sign_parts_no_words(completed) -> None:  # type: ignore[no-untyped-def]
    assert completed("score-sde --mode=tr", breaks=" \t\n") == ["--mode=train"]


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_the_script_of_a_shell_is_one_that_it_can_read(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """And it has every flag, and every field."""
    script = shell_script(shell, capsys)
    for name in ["mode", "workdir", *(f"config.{field}" for field in schema.fields())]:
        assert name in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
    elif shell != "bash":
        pytest.skip(f"{shell} is not here")


def test_fish_completes_them_too(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not here")
    script = tmp_path / "score-sde.fish"
    script.write_text(shell_script("fish", capsys))
    for typed, offered in (
        ("--mode=tr", "--mode=train"),
        ("--config.optim.l", "--config.optim.lr"),
        ("--config=qui", "--config=quickstart"),
    ):
        program = 'source $argv[1]; complete -C "score-sde $argv[2]"'
        command = ["fish", "--no-config", "-c", program, str(script), typed]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == [offered]


def shown(shell: list[str], folder: pathlib.Path, setup: str, typed: str, until: str) -> str:
    """What a shell shows in a terminal in which `typed` is typed, up to the text `until`."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["TERM"] = "xterm"
        os.execvp(shell[0], shell)
    output, deadline = "", time.monotonic() + 60.0
    wanted = iter((("ASKS:", f"{typed}\t"), (until, "")))  # the prompt, then what is completed
    os.write(terminal, f"{setup}; PS1=ASK''S:\n".encode())
    text, then = next(wanted)
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            output += os.read(terminal, 4096).decode(errors="replace").replace("\a", "")
        if text in output:
            if not then:
                break
            os.write(terminal, then.encode())
            output = ""
            text, then = next(wanted)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(terminal)
    return output


@pytest.mark.parametrize(
    ("shell", "setup"),
    [
        (["bash", "--norc", "--noprofile", "-i"], "source ./script"),
        (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; source ./script"),
    ],
)
def test_a_shell_completes_what_is_typed_in_its_terminal(
    shell: list[str], setup: str, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not here")
    (tmp_path / "script").write_text(shell_script(shell[0], capsys))
    for typed, whole in (
        ("score-sde --mode=tr", "score-sde --mode=train"),
        ("score-sde --config=digits/edm --wor", "score-sde --config=digits/edm --workdir="),
        ("score-sde --profile --config.optim.l", "score-sde --profile --config.optim.lr="),
    ):
        assert whole in shown(shell, tmp_path, setup, typed, whole)


def test_what_fish_would_take_for_its_own_is_quoted() -> None:
    assert completion.SCRIPTS["fish"]({"x": "it's \\ so"}, (), {}).endswith(
        "complete -c score-sde -l x -d 'it\\'s \\\\ so' -x"
    )
