"""Our speed beside that of today's projects: one table, of contenders that take turns.

    python -m benchmarks.today --workdir=runs/today [--peer=PATH]... [--python=PATH]...
        [--rows=step,sampler,bits,start,fid,toy] [--skip_missing] [--quick] [--page=docs/speed.md]

Every contender is a process of its own, on the same number of cores (--threads) and with as many
threads. A --peer is a checkout: of score_sde (JAX), score_sde_pytorch, score_flow or EDM. Other
projects are packages (the extra `peers`, and pytorch-fid, torch-fidelity, clean-fid): a --python is
an interpreter that has some of them beside what this project needs, tried behind the one that runs
this. What was measured is kept in the workdir, case by case: the same command goes on where it was
stopped, and prints the whole table. Programs that are compiled for it are kept there, too. --quick
takes one round of less work, to see that everything runs. A contender that cannot run here is
refused, or left out with --skip_missing.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from benchmarks import pages
from benchmarks.today import rows, start, tables, toy, turns
from benchmarks.today.rows import CONTENDERS, OURS, ROWS
from benchmarks.today.worker import Job
from runtime import files

PAGE = "benchmarks.today"
COMPILED = {"JAX_COMPILATION_CACHE_DIR": "jax", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


class Today:
    """What was asked for, and where results are kept.

    Raises:
      ValueError: a row, a checkout or an interpreter that is none; a contender that is missing.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.workdir = pathlib.Path(options.workdir).resolve()
        self.rows = rows.chosen(options.rows)
        self.projects = rows.checkouts_by_project(options.peer)
        names = {name for row in self.rows for name in ROWS[row].contenders}
        ordered = [name for name in CONTENDERS if name in names]
        pythons = [sys.executable, *options.python]
        self.missing: tuple[str, ...] = ()
        try:
            self.pythons = rows.pythons_by_contender(ordered, pythons, self.projects)
        except rows.Missing as error:
            if not options.skip_missing or OURS in error.names:
                raise
            self.missing = error.names
            there = [name for name in ordered if name not in error.names]
            self.pythons = rows.pythons_by_contender(there, pythons, self.projects)

    def settings(self) -> dict[str, Any]:
        """What a stored result must have been measured with, to count."""
        return {"quick": self.options.quick, "threads": self.options.threads}

    def launch(self, name: str, log: str, **variables: str) -> turns.Launch:
        """The start of a contender's process, whose compiled programs lie in the workdir."""
        kept = {
            key: os.environ.get(key, str(self.workdir / "compiled" / folder))
            for key, folder in COMPILED.items()
        }
        python = self.pythons[name]
        both = {**kept, **CONTENDERS[name].variables, **variables}
        return turns.Launch(python, both, self.workdir / "logs" / f"{log}.log")

    def present(self, row: str, case: str) -> list[str]:
        """The contenders of a case that can run, ours first."""
        return [name for name in ROWS[row].of(case) if name in self.pythons]

    def stored(self, row: str, case: str) -> tables.Result | None:
        """The result of a case, if it was measured in the same way, of the same contenders."""
        path = self.workdir / f"{row}-{case}.json"
        if not path.is_file():
            return None
        result: tables.Result = files.read_json(path, "remove it, and it is measured again")
        same = result.get("settings") == self.settings()
        return result if same and list(result["contenders"]) == self.present(row, case) else None

    def measure(self) -> dict[str, dict[str, tables.Result]]:
        """The results of all cases, from their files or new."""
        results: dict[str, dict[str, tables.Result]] = {}
        for row in self.rows:
            for case, (words, rounds) in ROWS[row].cases.items():
                result = self.stored(row, case)
                if result is None:
                    print(f"{row}: {words}", flush=True)
                    count = 1 if self.options.quick else self.options.rounds or rounds
                    run = self.commands if row in ("start", "toy") else self.calls
                    result = {
                        "settings": self.settings(),
                        "rounds": count,
                        "contenders": run(row, case, count),
                        "missing": [n for n in ROWS[row].of(case) if n in self.missing],
                    }
                    files.write_json(self.workdir / f"{row}-{case}.json", result)
                results.setdefault(row, {})[case] = result
        return results

    def calls(self, row: str, case: str, rounds: int) -> dict[str, turns.Measured]:
        """A case of contenders that take turns, once all have loaded it."""
        self.prepare(row)
        workers: list[turns.Worker] = []
        try:
            for name in self.present(row, case):
                options = self.options.threads, self.options.quick
                checkout = self.projects.get(CONTENDERS[name].project, "")
                job = Job(row, name, case, checkout, str(self.workdir / row), *options)
                workers.append(turns.Worker(name, job, self.launch(name, f"{row}-{case}-{name}")))
            return turns.take_turns(workers, rounds, case)
        finally:
            for worker in workers:
                worker.close()

    def prepare(self, row: str) -> None:
        """What the contenders of a row find in its folder."""
        folder = self.workdir / row
        if row == "bits" and not (folder / "digits" / "config.py").is_file():
            shutil.rmtree(folder / "digits", ignore_errors=True)
            command = ["main.py", "--mode=import", "--source=digits", f"--workdir={folder}/digits"]
            turns.run(command, self.launch(OURS, "bits-import"), self.options.threads)
        if row == "fid":
            program = "import pathlib, sys; from benchmarks.today import fid; "
            program += "fid.prepare(pathlib.Path(sys.argv[1]))"
            command = ["-c", program, str(folder)]
            turns.run(command, self.launch(OURS, "fid-prepare"), self.options.threads)

    def commands(self, row: str, case: str, rounds: int) -> dict[str, turns.Measured]:
        """A case of commands, each to its end, in turns."""
        names = self.present(row, case)
        measured: dict[str, turns.Measured] = {
            name: {"cpu": {"command": []}, "seconds": {"command": []}, "facts": {}}
            for name in names
        }
        for _ in range(rounds):
            for name in names:
                spent = self.command(row, case, name)
                measured[name]["cpu"]["command"].append(spent.cpu)
                measured[name]["seconds"]["command"].append(spent.wall)
        return measured

    def command(self, row: str, case: str, name: str) -> turns.Spent:
        """One command, with an empty folder, and programs compiled before only if it asks so."""
        scratch, threads = self.workdir / row / name, self.options.threads
        run, compiled = scratch / "run", scratch / "compiled"
        shutil.rmtree(run, ignore_errors=True)
        log = f"{row}-{case}-{name}"
        work, _, again = case.partition("_")
        kept = {"JAX_COMPILATION_CACHE_DIR": str(compiled / work)}
        if row == "toy":
            shutil.rmtree(compiled, ignore_errors=True)
            command = toy.command(name, str(run), self.options.quick)
            return turns.run(command, self.launch(name, log, **kept), threads)
        if work == "compile":
            kept = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
        elif not again:
            shutil.rmtree(compiled / work, ignore_errors=True)
        checkout = self.projects.get(CONTENDERS[name].project, "")
        command, sign = start.command(name, work, str(run), checkout)
        return turns.run(command, self.launch(name, log, **kept), threads, sign)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = __doc__ or ""
    parser = argparse.ArgumentParser("python -m benchmarks.today", description=words.split("\n")[0])
    parser.add_argument("--workdir", default="runs/today", help="results, logs, compiled programs")
    parser.add_argument("--peer", action="append", default=[], help="a checkout of a project")
    parser.add_argument("--python", action="append", default=[], help="an interpreter for peers")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as the row says")
    parser.add_argument("--quick", action="store_true", help="one round of less work")
    parser.add_argument("--skip_missing", action="store_true", help="leave out what is not here")
    parser.add_argument("--page", type=pathlib.Path, help="the table goes into this page, too")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    try:
        today = Today(options)
        table = tables.markdown(today.measure())
        if options.page:
            pages.write(options.page, PAGE, table)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"\n{table}")


if __name__ == "__main__":
    main()
