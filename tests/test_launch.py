"""The recipes for clusters: what they would start, with stand-ins for the clusters' programs."""

import pathlib
import shlex
import shutil
import subprocess
import tarfile

import pytest
import yaml

import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/quickstart.py", "--workdir=gs://bucket/a run", "--config.seed=1"]


def stand_in(folder: pathlib.Path, name: str, script: str) -> None:
    """Puts a program in front of all others."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def run(tmp_path, script, *arguments, **environment) -> subprocess.CompletedProcess[str]:
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        env={"PATH": path, "HOME": str(tmp_path), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def check_flags(command: list[str]) -> None:
    """Refuses arguments that main.py does not know."""
    values = dict(word.removeprefix("--").partition("=")[::2] for word in command)
    assert values["mode"] in main.MODES
    assert {name for name in values if "." not in name} <= set(main.FLAGS)
    assert values["config"].startswith("configs/")
    assert (ROOT / values["config"]).is_file()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (143, True)])
def test_slurm_starts_a_process_on_each_machine_and_goes_on_when_it_was_stopped(
    tmp_path, code, requeued
):
    stand_in(tmp_path / "bin", "srun", f'printf "%s\\n" "$@"; exit {code}')
    stand_in(tmp_path / "bin", "scontrol", 'echo "scontrol $*"')
    there = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "77"}
    process = run(tmp_path, "slurm.sh", *ARGUMENTS, **there)
    assert process.returncode == code
    lines = process.stdout.splitlines()
    assert ("scontrol requeue 77" in lines) == requeued
    options = ["--kill-on-bad-exit=1", "--cpus-per-task=32"]
    assert lines[:4] == [*options, ".venv/bin/python", "main.py"]
    command = lines[4:-1] if requeued else lines[4:]
    assert command == ["--mode=train", "--distributed", *ARGUMENTS]
    check_flags(command)


def test_slurm_s_script_says_what_it_wants_outside_of_a_job(tmp_path):
    process = run(tmp_path, "slurm.sh", *ARGUMENTS)
    assert process.returncode != 0
    assert "start it with sbatch" in process.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="the commit is packed by git")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_a_tpu_slice_gets_the_commit_and_trains_on_all_machines(tmp_path):
    said = tmp_path / "said"
    stand_in(
        tmp_path / "bin", "gcloud",
        f'printf "%s\\0" "$@" >> {said}; printf "\\n\\0" >> {said}\n'
        f'if [ "$4" = scp ]; then cp "$5" {tmp_path}/copied.tar.gz; fi',
    )  # fmt: skip
    process = run(
        tmp_path, "tpu_vm.sh", "pod", "zone", *ARGUMENTS, GCLOUD="--internal-ip --project=p"
    )
    assert process.returncode == 0, process.stderr
    copy, ssh = ([*call.split("\0")[:-1]] for call in said.read_text().split("\n\0")[:-1])
    options = ["--zone=zone", "--worker=all", "--internal-ip", "--project=p"]
    assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copy[5:] == ["pod:", *options]
    assert ssh[:9] == ["compute", "tpus", "tpu-vm", "ssh", "pod", *options]
    with tarfile.open(tmp_path / "copied.tar.gz") as archive:
        names = archive.getnames()
    assert {"score_sde/main.py", "score_sde/requirements.lock", "score_sde/Makefile"} <= {*names}
    command = ssh[9].removeprefix("--command=").partition("&& exec ")[2]
    words = shlex.split(command)
    assert words == [".venv/bin/python", "main.py", "--mode=train", "--distributed", *ARGUMENTS]
    check_flags(words[2:])
    (folder,) = {pathlib.Path(copy[4]).parent}
    assert not folder.exists(), "the archive is removed"


def test_a_tpu_slice_needs_a_name_and_a_zone(tmp_path):
    process = run(tmp_path, "tpu_vm.sh", "pod")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("usage: ")


def test_kubernetes_starts_as_many_machines_as_the_topology_has():
    job = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    (slices,) = job["spec"]["replicatedJobs"]
    work = slices["template"]["spec"]
    pod = work["template"]["spec"]
    (container,) = pod["containers"]
    check_flags(container["args"])
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    first, _, second = topology.partition("x")
    assert chips * work["parallelism"] == int(first) * int(second)
    assert work["parallelism"] == work["completions"]


def test_the_image_copies_what_is_there():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert 'ENTRYPOINT ["python", "main.py"]' in lines
