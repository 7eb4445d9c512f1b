"""The package: a wheel without modules, an editable install, and what the hosted CI installs."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(hook: str, folder: pathlib.Path) -> zipfile.ZipFile:
    """The wheel that pip would install, made by the build backend's `hook` (PEP 517, PEP 660)."""
    program = f"import hatchling.build as b, sys; print(b.{hook}(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(folder)]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return zipfile.ZipFile(folder / name.split()[-1])


def metadata_folder(wheel: zipfile.ZipFile) -> str:
    """The only folder that a wheel of this project may write into site-packages."""
    assert wheel.filename
    name, version = pathlib.Path(wheel.filename).name.split("-")[:2]
    return f"{name}-{version}.dist-info/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build("build_editable", tmp_path_factory.mktemp("editable"))


def script_name(wheel: zipfile.ZipFile) -> str:
    """The place in a wheel of the command, which pip writes beside Python's own program."""
    return metadata_folder(wheel).replace(".dist-info/", ".data/scripts/score-sde")


def test_installing_puts_no_module_into_site_packages(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert script_name(wheel) in names
    assert wheel.getinfo(script_name(wheel)).external_attr >> 16 & 0o111 == 0o111  # executable
    others = names - {script_name(wheel)}
    assert all(name.startswith(metadata_folder(wheel)) for name in others), names


def test_installing_brings_every_dependency(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(f"{metadata_folder(wheel)}METADATA").decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    required = [line for line in required if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"]) > 0


def test_an_editable_install_is_one_path_file_beside_the_metadata(
    editable: zipfile.ZipFile,
) -> None:
    files = set(editable.namelist()) - {script_name(editable)}
    others = [name for name in files if "dist-info" not in name]
    assert [pathlib.Path(name).suffix for name in others] == [".pth"]
    assert editable.read(others[0]).decode().split() == [str(ROOT)]


def test_an_editable_install_makes_the_checkout_importable_from_anywhere(
    editable: zipfile.ZipFile, tmp_path: pathlib.Path
) -> None:
    site_packages, elsewhere = tmp_path / "site-packages", tmp_path / "elsewhere"
    editable.extractall(site_packages)
    elsewhere.mkdir()
    program = (
        "import importlib.util as u, site, sys; site.addsitedir(sys.argv[1]);"
        "print(*(u.find_spec(name).origin for name in sys.argv[2:]), sep='\\n')"
    )
    names = ("main", "sde_lib", "models", "runtime")
    output = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(site_packages), *names],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    origins = ("main.py", "sde_lib.py", "models/__init__.py", "runtime/__init__.py")
    assert output.split() == [str(ROOT / origin) for origin in origins]


def command(
    wheel: zipfile.ZipFile, folder: pathlib.Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command `score-sde`, run in `folder` by a Python that has installed this wheel alone."""
    site_packages = folder / "site-packages"
    wheel.extractall(site_packages)
    program = (
        "import runpy, site, sys; site.addsitedir(sys.argv[1]); sys.path.append(sys.argv[2]);"
        "del sys.argv[:3]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    folders = str(site_packages), sysconfig.get_path("purelib")  # ours, and that of other packages
    script = str(site_packages / script_name(wheel))
    argv = [sys.executable, "-I", "-S", "-c", program, *folders, script, *arguments]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_of_an_editable_install_is_the_program(
    editable: zipfile.ZipFile, tmp_path: pathlib.Path
) -> None:
    """In any folder, with configs by their names."""
    version = command(editable, tmp_path, "--version")
    assert version.stdout.splitlines()[0].startswith(f"score-sde {PROJECT['version']}")
    asked = command(editable, tmp_path, "--config=digits/edm", "--config.model.nf.help")
    assert asked.stdout.split()[0] == "model.nf", asked.stderr
    mistake = command(editable, tmp_path, "--mode=trian")
    assert (mistake.returncode, len(mistake.stderr.splitlines())) == (2, 1)
    assert "the nearest: train" in mistake.stderr


def test_the_command_of_a_wheel_says_in_one_line_what_it_lacks(
    wheel: zipfile.ZipFile, tmp_path: pathlib.Path
) -> None:
    for foreign in (False, True):  # somebody else's `main` is not ours
        if foreign:
            (tmp_path / "site-packages" / "main.py").write_text("print('another program')")
        ended = command(wheel, tmp_path, "--version")
        assert ended.returncode == 1
        assert ended.stdout == ""
        [line] = ended.stderr.splitlines()
        assert line.startswith("error: score-sde runs from its checkout")
        assert "pip install -e" in line


def locked(python: str) -> dict[str, str]:
    """The versions that requirements.lock gives a Python on Linux, by name."""
    system = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": python}
    there = {**system, "python_full_version": f"{python}.0"}
    versions: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line.lstrip().startswith("#"):
            continue
        requirement = Requirement(line)  # a name and a version: no index, no address
        if requirement.marker is None or requirement.marker.evaluate(there):
            [exactly] = requirement.specifier
            assert exactly.operator == "=="
            assert requirement.name not in versions, f"{requirement.name} twice for {python}"
            versions[requirement.name] = exactly.version
    return versions


@pytest.mark.parametrize(("python", "jax"), [("3.11", "0.10"), ("3.12", "0.12"), ("3.13", "0.12")])
def test_the_lock_gives_each_python_its_newest_jax(python: str, jax: str) -> None:
    """And a version of everything that pyproject.toml asks for, within its pins, with the extras
    that make it whole: digits and sets to prepare, all metrics, the CPU's native functions."""
    versions = locked(python)
    assert versions["jax"].startswith(f"{jax}.")
    assert versions["jaxlib"] == versions["jax"]
    extras = ("data", "metrics", "native", "test")
    asked = list(PROJECT["dependencies"])
    asked += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_hosted_ci_begins_with_the_lowest_python_and_jax_that_are_admitted() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in matrix["python"])
    constraints = {entry["jax"]: Requirement(entry["constraint"]) for entry in matrix["include"]}
    assert list(constraints) == matrix["jax"] == ["lowest", "newest"]
    admitted = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
    floors = [part.version for part in admitted["jax"].specifier if part.operator == ">="]
    [lowest] = [part.version for part in constraints["lowest"].specifier]
    assert floors == [lowest.removesuffix(".0")]
    assert not constraints["newest"].specifier  # the newest that the pins admit


def test_the_hosted_ci_checks_every_jax_that_is_locked() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    checked, every = (
        {locked(python)["jax"] for python in workflow["jobs"][job]["strategy"]["matrix"]["python"]}
        for job in ("checks", "versions")
    )
    assert checked == every


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
