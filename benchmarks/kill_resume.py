"""Kills pre-training at random instants and compares what it ends with: the same bytes, the same samples, no time lost.

    python benchmarks/kill_resume.py --output build/kill_resume --kills 100

Four questions, on the `tiny` preset, the joint objective and a set packed from the embedded sample:
kill   SIGKILL at random instants, the run going on with --resume until it is finished, again and again, on each number
       of processes. Instants are uniform over the life of an undisturbed process, from its first instruction on; a
       share of them waits for a checkpoint that is being written, and falls within it. Of several processes all are
       killed, or one alone: then the others must stop by themselves, and say why. A finished run's weights, optimizer
       state and logged losses are compared with those of the undisturbed run on as many processes, and it is certified:
       what its processes recorded of the rows that they read, whether any was lost or came twice.
world  undisturbed runs on 1, 2 and 4 processes: the same rows in the same order, and how far their losses lie apart.
start  seconds from the start of a process to its first step, from a checkpoint of step 10 and one of step 1,000,000
       (the same checkpoint under another number, beside the 100,000 rows that its run would have logged).

Each result is a line of results.jsonl as soon as it is known: stop it at will, run it again to go on, with the same
seed at the same instants. --parts table prints the summary of what is there. Linux only (/proc).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "KILL_RESUME_PROCESS"  # an environment variable by which a run's processes know each other, launchers included
SEQUENCE_LENGTH, MICRO_BATCH_SIZE, MICRO_BATCHES = 64, 4, 4
LONG_RUN = 1_000_100  # steps
STOP_SECONDS = 60  # in which the processes that outlive a killed one must have stopped


@dataclass(frozen=True)
class Config:
    output: Path = Path("build/kill_resume")
    """folder for everything"""
    kills: int = 100
    """SIGKILLs on each number of processes"""
    processes: tuple[int, ...] = (1, 2)
    """numbers of processes to kill on"""
    steps: int = 24
    """optimizer steps of a run; a checkpoint every second one"""
    saving_share: float = 0.35
    """share of the kills that wait for a save"""
    one_rank_share: float = 0.25
    """share of the kills on several processes that take one alone"""
    threads: int = 1
    """of each process"""
    seed: int = 0
    """of the kills' instants"""
    parts: tuple[Literal["kill", "world", "start", "table"], ...] = ("kill", "world", "start", "table")
    """which of them"""


class Results:
    """Lines of JSON, written one by one."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, **row: Any) -> None:
        with open(self.path, "a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        lines = self.path.read_text().split("\n") if self.path.is_file() else []
        rows = [json.loads(line) for line in lines if line]
        return [row for row in rows if row["kind"] == kind and all(row[k] == v for k, v in fields.items())]


# ---- processes --------------------------------------------------------------------------------------------------------


class Run:
    """A pre-training run in processes of its own, one after the other."""

    def __init__(self, config: Config, output: Path, processes: int, **options: Any):
        self.output, self.processes, self.log = output, processes, output.with_suffix(".log")
        options = {"steps": config.steps, "save_every": 2, "keep": 2, "log_every": 1, **options}
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        machine = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
        launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", machine]
        launch = [*launch, "--num_processes", str(processes)] if processes > 1 else []
        self.command = [
            sys.executable, *launch, "-m", "septet.modeling.pretrain", "--preset", "tiny", "--objective", "joint",
            "--data", str(config.output / "packed"), "--output", str(output), "--micro-batch-size", str(MICRO_BATCH_SIZE),
            "--tokens-per-step", str(MICRO_BATCHES * MICRO_BATCH_SIZE * SEQUENCE_LENGTH), "--validate-every", "1000000",
            "--validation-sequences", "4", "--resume", *flags,
        ]  # fmt: skip
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": str(config.threads), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1", TOKEN: f"{os.getpid()} {output.name}",
        }  # fmt: skip

    def __enter__(self) -> Run:
        """Starts."""
        self.log_offset = self.log.stat().st_size if self.log.is_file() else 0
        self.before = self._aside()
        self.started = time.time()
        with open(self.log, "a") as log:
            self.launcher = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment)
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def wait(self) -> float:
        """Waits for a good end; returns the seconds it took."""
        if self.launcher.wait():
            raise SystemExit(f"{self.output}: failed; see {self.log}")
        return time.time() - self.started

    def members(self) -> dict[int, int | None]:
        """Process id -> rank (None: a launcher) of all that runs, in whatever session and whoever its parent is."""
        mark = f"{TOKEN}={self.environment[TOKEN]}".encode()
        found = {}
        for place in os.listdir("/proc"):
            if place.isdigit():
                with contextlib.suppress(OSError):  # it has ended, or is another user's
                    variables = Path("/proc", place, "environ").read_bytes().split(b"\0")
                    if mark in variables:
                        ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
                        found[int(place)] = ranks[0] if ranks else None
        return found

    def kill(self, rank: int | None = None) -> bool:
        """Kills all processes, or one; returns whether there was one to kill."""
        chosen = {pid for pid, its in self.members().items() if rank is None or its == rank}
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if rank is None:
            self.launcher.wait()
            if self.members():  # born while the others were killed
                self.kill()
        return bool(chosen)

    def said(self) -> str:
        """What this start of it has printed."""
        with open(self.log, "rb") as log:
            log.seek(self.log_offset)
            return log.read().decode(errors="replace")

    def _aside(self) -> dict[str, int]:
        names = os.listdir(self.output) if self.output.is_dir() else []
        with contextlib.suppress(FileNotFoundError):
            return {n: os.stat(self.output / n).st_ino for n in names if re.fullmatch(r"\.step_\d+\.(tmp|old)", n)}
        return self._aside()  # one was renamed meanwhile

    def unfinished(self) -> set[str]:
        """Checkpoints that this start of it is writing or removing at the moment."""
        return {name for name, inode in self._aside().items() if self.before.get(name) != inode}

    def phase(self) -> str:
        """What a killed process was at."""
        kinds = {name[-3:] for name in self.unfinished()}
        if kinds:
            return "saving" if "tmp" in kinds else "rotating"
        if (self.output / "final").exists():
            return "finishing"
        return "training" if "times through each source" in self.said() else "starting"


def strike(run: Run, draw: random.Random, life: float, config: Config) -> dict[str, Any] | None:
    """Kills a started run at an instant that `draw` chooses; None if it ended before."""
    at_a_save = draw.random() < config.saving_share
    one_rank = run.processes > 1 and draw.random() < config.one_rank_share
    rank = draw.randrange(run.processes) if one_rank else None
    instant, saves, within = draw.uniform(0, life), draw.randint(1, 4), draw.uniform(0, 0.2)
    met: set[str] = set()
    while run.launcher.poll() is None:
        if at_a_save:
            met |= {name for name in run.unfinished() if name.endswith("tmp")}
            if len(met) >= saves:
                time.sleep(within)
                break
        elif time.time() - run.started >= instant:
            break
        time.sleep(0.001)
    if run.launcher.poll() is not None:
        return None
    seconds = time.time() - run.started
    row = {"aim": "save" if at_a_save else "any instant", "seconds": round(seconds, 3), "rank": rank}
    if rank is not None and run.kill(rank):
        killed = time.time()
        row["phase"] = run.phase()  # the others clean up behind it
        while run.members() and time.time() < killed + 2 * STOP_SECONDS:
            time.sleep(0.01)
        row |= {
            "stopped_seconds": round(time.time() - killed, 2),
            "reason": "Signal 9 (SIGKILL)" in run.said() and f"rank      : {rank} " in run.said(),
        }
    elif rank is not None:  # the launcher had not started it yet
        row["rank"] = None
    run.kill()
    return {"phase": run.phase(), **row}


# ---- the parts --------------------------------------------------------------------------------------------------------


def pack(output: Path) -> None:
    """A small packed set: 163 documents of the embedded sample, 518 sequences of 64 tokens."""
    stages = {
        "sample": (),
        "corpus": (
            "--inputs", *(str(output / f"sample/pretrain/{lang}_validation.jsonl.gz") for lang in ("en", "fr", "zh")),
            "--validation-share", "0.1", "--quality", "none", "--near-duplicates", "0",
        ),
        "tokenizer": ("--corpus", str(output / "corpus"), "--vocab-size", "512"),
        "packed": (
            "--corpus", str(output / "corpus"), "--tokenizer", str(output / "tokenizer"),
            "--sequence-length", str(SEQUENCE_LENGTH),
        ),
    }  # fmt: skip
    for folder, options in stages.items():
        verb = "pack" if folder == "packed" else folder
        command = [sys.executable, "-m", "septet.tasks.cli", verb, *options, "--output", str(output / folder)]
        if not (output / folder / "manifest.json").is_file():
            subprocess.run(command, check=True)


def undisturbed(config: Config, results: Results, processes: int) -> Path:
    """The folder of a run that nobody disturbs."""
    output = config.output / f"undisturbed_{processes}"
    if not results.of("undisturbed", processes=processes):
        shutil.rmtree(output, ignore_errors=True)
        with Run(config, output, processes) as run:
            seconds = run.wait()
        manifest = json.loads((output / "manifest.json").read_text())
        if manifest["counts"]["environment"]["num_processes"] != processes:
            raise SystemExit(f"{output}: ran on {manifest['counts']['environment']['num_processes']} processes")
        results.add(
            kind="undisturbed", processes=processes, seconds=round(seconds, 2), code_version=manifest["code_version"]
        )
    return output


def losses(run: Path) -> list[tuple[int, str, float]]:
    """Of each logged step, in the file's order: its number, the rows read until then, and the loss."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    return [(row["step"], row["rows_sha256"], row["loss"]) for row in rows if "loss" in row]


def kill(config: Config, results: Results, processes: int) -> None:
    """Chains of killed runs, each to its end."""
    whole = undisturbed(config, results, processes)
    life = results.of("undisturbed", processes=processes)[0]["seconds"]
    while (number := len(results.of("kill", processes=processes))) < config.kills:
        chain = len(results.of("run", processes=processes))
        output = config.output / f"killed_{processes}_{chain}"
        while not (output / "manifest.json").is_file():
            with Run(config, output, processes) as run:
                draw = random.Random(f"{config.seed} {processes} {number}")
                struck = strike(run, draw, life, config) if number < config.kills else None
                if struck:
                    results.add(kind="kill", processes=processes, run=chain, number=number, **struck)
                    number += 1
                else:
                    run.wait()
        results.add(kind="run", processes=processes, run=chain, **compared(output, whole))
        if results.of("run", processes=processes)[-1]["same"]:
            shutil.rmtree(output)


def compared(run: Path, whole: Path) -> dict[str, Any]:
    """How a run that was killed differs from one that was not, and what its certificate says."""
    from septet.data.errors import UserError
    from septet.modeling.certify import CertifyConfig, tensor_lines
    from septet.modeling.certify import run as certify

    last = max(whole.glob("step_*"), key=lambda path: int(path.name[5:])).name
    same = {
        "same_weights": (run / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes(),
        "same_optimizer": tensor_lines(run / last, "optimizer") == tensor_lines(whole / last, "optimizer"),
        "same_losses": losses(run) == losses(whole),
    }  # fmt: skip
    lost, repeated, refused = None, None, None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            certificate = json.loads(certify(CertifyConfig(run)).read_text())
        lost, repeated = (sum(s[key] for s in certificate["sources"].values()) for key in ("lost", "repeated"))
    except UserError as error:
        refused = str(error)
    return {"same": all(same.values()) and not refused, **same, "lost": lost, "repeated": repeated, "refused": refused}


def world(config: Config, results: Results) -> None:
    """Runs on several numbers of processes against the one on one."""
    one = losses(undisturbed(config, results, 1))
    for processes in (2, 4):
        many = losses(undisturbed(config, results, processes))
        if not results.of("world", processes=processes):
            results.add(
                kind="world", processes=processes, steps=len(many),
                same_rows=[row[:2] for row in many] == [row[:2] for row in one],
                loss_difference=max(abs(a[2] - b[2]) for a, b in zip(one, many, strict=True)),
            )  # fmt: skip


def start(config: Config, results: Results) -> None:
    """Seconds to the first step from two checkpoints that differ in their number alone."""
    options = {"steps": LONG_RUN, "save_every": 10}
    early, late = config.output / "start_10", config.output / "start_1000000"
    if not (early / "step_10/manifest.json").is_file():
        shutil.rmtree(early, ignore_errors=True)
        with Run(config, early, 1, **options) as run:
            while not (early / "step_10/manifest.json").is_file():
                if run.launcher.poll() is not None:
                    run.wait()
                time.sleep(0.01)
    for repetition in range(len(results.of("start", step=1_000_000)), 3):
        for step, folder in ((10, early), (1_000_000, late)):
            copy = config.output / "start_now"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(early, copy)
            for other in [*copy.glob("step_*"), *copy.glob(".step_*")]:
                if other.name != "step_10":
                    shutil.rmtree(other)
            if folder == late:
                renumber(copy, step)
            with Run(config, copy, 1, **options) as run:
                while f'"step": {step + 1},'.encode() not in tail(copy / "metrics.jsonl"):
                    if run.launcher.poll() is not None:
                        raise SystemExit(f"{copy}: ended before its first step; see {run.log}")
                    time.sleep(0.005)
                seconds = time.time() - run.started
            results.add(kind="start", step=step, repetition=repetition, seconds=round(seconds, 3))


def renumber(run: Path, step: int) -> None:
    """Makes the checkpoint of step 10 one of `step`, and the log one of as many steps, every tenth of them logged."""
    from septet.data.manifest import sha256_of_file, write_json

    folder = (run / "step_10").rename(run / f"step_{step}")
    state, manifest = (json.loads((folder / name).read_text()) for name in ("training_state.json", "manifest.json"))
    samples = state["samples"] // state["step"] * step
    write_json(folder / "training_state.json", {**state, "step": step, "samples": samples})
    file = folder / "training_state.json"
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    manifest["counts"]["step"] = step
    write_json(folder / "manifest.json", manifest)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    row = next(row for row in rows if row["step"] == 10)
    with open(run / "metrics.jsonl", "w") as stream:
        stream.writelines(json.dumps({**row, "step": logged}) + "\n" for logged in range(10, step + 1, 10))


def tail(path: Path, size: int = 4096) -> bytes:
    """The last bytes of a file that may not be there."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read()
    except FileNotFoundError:
        return b""


# ---- the summary ------------------------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """What the results say, in lines of Markdown."""
    lines = []
    for processes in sorted({row["processes"] for row in results.of("kill")}):
        kills, runs = results.of("kill", processes=processes), results.of("run", processes=processes)
        alone = [row for row in kills if row["rank"] is not None]
        phases = Counter(row["phase"] for row in kills)
        lines += [
            f"| {processes} process(es) | |",
            "|---|---|",
            f"| SIGKILLs | {len(kills)}: {', '.join(f'{phase} {n}' for phase, n in phases.most_common())} |",
            f"| runs finished after them | {len(runs)} |",
            *(
                f"| the same {name} byte for byte | {sum(row[f'same_{name}'] for row in runs)} of {len(runs)} |"
                for name in ("weights", "optimizer", "losses")
            ),
            f"| certified | {sum(row['refused'] is None for row in runs)} of {len(runs)} |",
            f"| samples lost, repeated | {sum(row['lost'] or 0 for row in runs)}, {sum(row['repeated'] or 0 for row in runs)} |",
        ]
        if alone:
            times = sorted(row["stopped_seconds"] for row in alone)
            lines += [
                f"| one process killed alone | {len(alone)} |",
                f"| seconds until the others had stopped | median {statistics.median(times)}, most {times[-1]} |",
                f"| with the reason | {sum(row['reason'] for row in alone)} of {len(alone)} |",
            ]
        lines.append("")
    if results.of("world"):
        lines += [
            "| processes | steps | same rows in the same order | largest difference of a loss |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| 1 and {row['processes']} | {row['steps']} | {'yes' if row['same_rows'] else 'NO'} | {row['loss_difference']:.1e} |"
            for row in results.of("world")
        ]
        lines.append("")
    times = {step: [row["seconds"] for row in results.of("start", step=step)] for step in (10, 1_000_000)}
    if times[1_000_000]:
        lines += ["| from a checkpoint of step | seconds to the first step: median | all |", "|---|---|---|"]
        lines += [f"| {step:,} | {statistics.median(t):.2f} | {', '.join(map(str, t))} |" for step, t in times.items()]
    return "\n".join(lines)


def main(config: Config) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    results = Results(config.output / "results.jsonl")
    settings, place = dataclasses.asdict(config), config.output / "settings.json"
    settings = {name: settings[name] for name in ("steps", "saving_share", "one_rank_share", "threads", "seed")}
    if not place.is_file():
        place.write_text(json.dumps(settings))
    elif json.loads(place.read_text()) != settings:
        raise SystemExit(f"{config.output}: was begun with {place.read_text()}; give the same, or another --output")
    pack(config.output)
    if "kill" in config.parts:
        for processes in config.processes:
            kill(config, results, processes)
    if "world" in config.parts:
        world(config, results)
    if "start" in config.parts:
        start(config, results)
    print(table(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
