"""The whole route on real text and real task sets, as in docs/results.md.

    python benchmarks/real_route.py --data DATA --output build/real

DATA holds `pretrain/{en,fr,zh}.jsonl.gz` with `*_validation` beside them, and one folder a task set in the columns that
the recipes name. What is done is not done again: run the same command to go on after an interruption.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tyro


@dataclass(frozen=True)
class TaskSet:
    """A fine-tuning and its evaluation."""

    task: str
    reading: tuple[str, ...]
    """options that finetune and evaluate share"""
    finetune: tuple[str, ...]
    evaluate: tuple[str, ...] = ()
    folder: str = ""
    """of the set, where it is not the run's name"""


# Epochs and rows are cut so that all twelve fit into some forty minutes of two CPU cores; longest first.
SETS = {
    "multi30k_en_fr": TaskSet("translation", (), ("--epochs", "3"), ("--split", "test_2016_flickr")),
    "drcd_zh": TaskSet("qa", ("--lang", "zh"), ("--epochs", "2", "--max-rows", "1000")),
    "subjqa_en": TaskSet("qa", ("--lang", "en"), ("--epochs", "2", "--max-rows", "800")),
    "piaf_fr": TaskSet("qa", ("--lang", "fr"), ("--epochs", "2", "--max-rows", "1200")),
    "synopsis_en": TaskSet(
        "summarization", ("--lang", "en"), ("--epochs", "3", "--max-rows", "1500"), ("--max-rows", "400")
    ),
    "synopsis_fr": TaskSet(
        "summarization", ("--lang", "fr"), ("--epochs", "3", "--max-rows", "1500"), ("--max-rows", "400")
    ),
    "synopsis_fr_section": TaskSet(
        "classification",
        ("--lang", "fr", "--columns", "text", "document", "label", "section"),
        ("--epochs", "3", "--max-rows", "2000"),
        folder="synopsis_fr",
    ),
    "cluener_zh": TaskSet("ner", ("--lang", "zh"), ("--epochs", "3")),
    "conll2003_en": TaskSet("ner", ("--lang", "en"), ("--epochs", "3")),
    "csl_title_zh": TaskSet("summarization", ("--lang", "zh"), ("--epochs", "6")),
    "thucnews_zh": TaskSet("classification", ("--lang", "zh"), ("--epochs", "4")),
    "trec6_en": TaskSet("classification", ("--lang", "en"), ("--epochs", "8")),
}
LANGUAGES = ("en", "fr", "zh")


@dataclass(frozen=True)
class Config:
    data: Path
    """folder of the real sets"""
    output: Path = Path("build/real")
    """where everything goes"""
    tokens: int = 5_000_000
    """tokens of pre-training"""
    sets: tuple[str, ...] = field(default_factory=lambda: tuple(SETS))
    """which task sets"""
    jobs: int = os.cpu_count() or 1
    """task sets at the same time, each with its share of the cores; small models use one core best"""
    seed: int = 0
    """of everything"""


def septet(*arguments: str | Path, log: Path, threads: int | None = None) -> None:
    """One verb, its output in a log; raises if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    started = time.time()
    with open(log, "a") as stream:
        command = [str(a) for a in arguments]
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        subprocess.run([sys.executable, "-m", *command], stdout=stream, stderr=stream, check=True, env=environment)
    print(f"{time.time() - started:7.0f} s  {' '.join(command)}", flush=True)


def main(config: Config) -> None:
    out, text = config.output, config.data / "pretrain"
    verb = "septet.tasks.cli"
    shards = [text / f"{lang}.jsonl.gz" for lang in LANGUAGES]
    held_out = [text / f"{lang}_validation.jsonl.gz" for lang in LANGUAGES]
    log = out / "logs" / "pretrain.log"
    septet(verb, "corpus", "--inputs", *shards, "--validation-inputs", *held_out, "--output", out / "corpus", log=log)
    septet(
        verb, "tokenizer", "--corpus", out / "corpus", "--output", out / "tokenizer", "--vocab-size", "8192", log=log
    )
    packed = ("--corpus", out / "corpus", "--tokenizer", out / "tokenizer", "--output", out / "packed")
    septet(verb, "pack", *packed, "--sequence-length", "256", log=log)
    launch = (
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "accelerate_configs/cpu.yaml",
        "--num_cpu_threads_per_process",  # two threads wait for each other at every product if anything else runs
        "1",
    )
    septet(
        *launch, "-m", "septet.modeling.pretrain", "--preset", "nano", "--objective", "joint",
        "--data", out / "packed", "--output", out / "runs/pretrain", "--tokens", str(config.tokens),
        "--tokens-per-step", "4096", "--micro-batch-size", "16", "--save-every", "100", "--validate-every", "300",
        "--validation-sequences", "64", "--seed", str(config.seed), "--resume", log=log,
    )  # fmt: skip

    def fine_tune(name: str) -> None:
        chosen, threads = SETS[name], max(1, (os.cpu_count() or 1) // config.jobs)
        data, run, log = config.data / (chosen.folder or name), out / "runs" / name, out / "logs" / f"{name}.log"
        common = ("--data", data, *chosen.reading)
        base = ("--base", out / "runs/pretrain/final", "--output", run, "--seed", str(config.seed), "--resume")
        septet(verb, "finetune", chosen.task, *common, *base, *chosen.finetune, log=log, threads=threads)
        place = ("--model", run / "final", "--output", out / "reports" / name, "--title", f"{chosen.task}: {name}")
        septet(verb, "evaluate", chosen.task, *common, *place, *chosen.evaluate, log=log, threads=threads)

    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(fine_tune, config.sets))
    septet(verb, "report", "--reports", out / "reports", "--run", out / "runs/pretrain", log=log)
    for name in config.sets:
        report = json.loads((out / "reports" / name / "report.json").read_text())
        metric = report["primary_metric"]
        score = report["scores"][metric]
        beside = ", ".join(f"{n} {b['scores'][metric]['value']:.1f}" for n, b in report["baselines"].items())
        print(f"{name:22} {metric} {score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}]  ({beside})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
