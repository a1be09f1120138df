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
    alone: bool = False
    """in a process for each core, before the others, instead of in one beside another's"""


# Epochs and rows are cut so that all of it, pre-training included, fits into some three hours of two CPU cores; what takes
# longest comes first. A base that has read so little still has much to learn: rates are two or three times the recipes', and
# four times that for embeddings; but half of the recipes' for the fewest rows.
FASTER = ("--learning-rate", "4e-3", "--embedding-rate", "4")
FASTEST = ("--learning-rate", "6e-3", "--embedding-rate", "4")
FEW = (*FASTER, "--token-replacement", "0.1")  # for few rows
FEWEST = ("--learning-rate", "1e-3", "--dropout", "0.2", "--token-replacement", "0.1")
SETS = {
    "multi30k_en_fr": TaskSet(
        "translation", (), ("--epochs", "7.5", *FASTEST, "--num-beams", "5"),
        ("--split", "test_2016_flickr"), alone=True,
    ),
    "drcd_zh": TaskSet("qa", ("--lang", "zh"), ("--epochs", "2", *FASTER)),
    "piaf_fr": TaskSet("qa", ("--lang", "fr"), ("--epochs", "3", *FASTER)),
    "synopsis_en": TaskSet("summarization", ("--lang", "en"), ("--epochs", "2", *FASTEST), ("--max-rows", "400")),
    "synopsis_fr": TaskSet("summarization", ("--lang", "fr"), ("--epochs", "2", *FASTEST), ("--max-rows", "400")),
    "conll2003_en": TaskSet("ner", ("--lang", "en"), ("--epochs", "6", *FASTER)),
    "cluener_zh": TaskSet("ner", ("--lang", "zh"), ("--epochs", "6", *FASTER)),
    "thucnews_zh": TaskSet("classification", ("--lang", "zh"), ("--epochs", "6", *FEW)),
    "csl_category_zh": TaskSet("classification", ("--lang", "zh"), ("--epochs", "6", *FEW)),
    "sst2_en": TaskSet("classification", ("--lang", "en", "--columns", "text", "sentence"), ("--epochs", "5", *FEW)),
    "resume_ner_zh": TaskSet("ner", ("--lang", "zh"), ("--epochs", "8", *FASTER)),
    "trec6_en": TaskSet("classification", ("--lang", "en"), ("--epochs", "8", *FEWEST)),
}  # fmt: skip
# Sets that are not scored, read for their texts: reviews, news, abstracts.
TEXTS = {
    "subjqa_en": TaskSet("qa", ("--lang", "en"), ()),
    "ag_news_en": TaskSet("classification", ("--lang", "en"), ()),
    "csl_title_zh": TaskSet("summarization", ("--lang", "zh"), ()),
}
LANGUAGES = ("en", "fr", "zh")
LAUNCH = ("accelerate.commands.accelerate_cli", "launch", "--config_file")


@dataclass(frozen=True)
class Config:
    data: Path
    """folder of the real sets"""
    output: Path = Path("build/real")
    """where everything goes"""
    tokens: int = 9_000_000
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


def task_texts(config: Config) -> Path:
    """The texts of every set's train part as documents of twenty rows, without labels: what a model is to work on is worth
    reading before (Gururangan et al. 2020)."""
    from septet.data.documents import write_jsonl
    from septet.tasks.harness.task import Reading, get_task, read_examples
    from septet.tasks.ner import joined

    documents = []
    for name, chosen in {**SETS, **TEXTS}.items():
        task, options = get_task(chosen.task), list(chosen.reading)
        lang = options[options.index("--lang") + 1] if "--lang" in options else None
        columns = {"text": "sentence"} if "sentence" in options else {}
        texts: dict[str, dict[str, None]] = {each: {} for each in LANGUAGES}  # in order, each once
        for example in read_examples(task, config.data / name, "train", Reading(columns, lang)):
            for role, value in example.input.items():
                text = value if isinstance(value, str) else joined(value, example.lang)[0]
                texts["en" if role == "source" else example.lang][text] = None
            if chosen.task in ("translation", "summarization"):
                texts[example.lang][example.reference] = None
        for of, rows in texts.items():
            chunks = [list(rows)[start : start + 20] for start in range(0, len(rows), 20)]
            documents += [{"text": "\n".join(chunk), "lang": of, "source": name} for chunk in chunks]
    path = config.output / "task_texts.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, documents)
    return path


def mixture(corpus: Path) -> list[str]:
    """Weight of each source: its bytes to the power of 0.3, so that the small ones are read more often than they are long
    (as mT5 does with languages, Xue et al. 2021)."""
    sources = json.loads((corpus / "manifest.json").read_text())["counts"]["sources"]["train"]
    return [text for name, counts in sources.items() for text in (name, f"{counts['bytes'] ** 0.3:.1f}")]


def main(config: Config) -> None:
    out, text = config.output, config.data / "pretrain"
    verb = "septet.tasks.cli"
    shards = [text / f"{lang}.jsonl.gz" for lang in LANGUAGES] + [task_texts(config)]
    held_out = [text / f"{lang}_validation.jsonl.gz" for lang in LANGUAGES]
    log = out / "logs" / "pretrain.log"
    sets = [config.data / name for name in SETS]
    septet(
        verb, "corpus", "--inputs", *shards, "--validation-inputs", *held_out, "--decontaminate", *sets,
        "--output", out / "corpus", log=log,
    )  # fmt: skip
    septet(
        verb, "tokenizer", "--corpus", out / "corpus", "--output", out / "tokenizer", "--vocab-size", "8192", log=log
    )
    packed = ("--corpus", out / "corpus", "--tokenizer", out / "tokenizer", "--output", out / "packed")
    septet(verb, "pack", *packed, "--sequence-length", "512", log=log)
    cores = os.cpu_count() or 1
    septet(
        *LAUNCH, "accelerate_configs/cpu.yaml", "--num_cpu_threads_per_process", str(cores),
        "-m", "septet.modeling.pretrain", "--preset", "nano", "--objective", "joint",
        "--data", out / "packed", "--output", out / "runs/pretrain", "--tokens", str(config.tokens),
        "--tokens-per-step", "4096", "--micro-batch-size", "8", "--save-every", "100", "--validate-every", "300",
        "--validation-sequences", "64", "--mixture", *mixture(out / "corpus"), "--seed", str(config.seed), "--resume",
        log=log,
    )  # fmt: skip

    def fine_tune(name: str) -> None:
        chosen = SETS[name]
        threads = cores if chosen.alone else max(1, cores // config.jobs)
        data, run, log = config.data / name, out / "runs" / name, out / "logs" / f"{name}.log"
        common = ("--data", data, *chosen.reading)
        base = ("--base", out / "runs/pretrain/final", "--output", run, "--seed", str(config.seed), "--resume")
        processes = (*LAUNCH, "accelerate_configs/cpu_2proc.yaml", "--num_processes", str(cores))
        starting = (*processes, "-m", "septet.tasks.harness.finetune") if chosen.alone else (verb, "finetune")
        septet(
            *starting, chosen.task, *common, *base, *chosen.finetune, log=log, threads=1 if chosen.alone else threads
        )
        place = ("--model", run / "final", "--output", out / "reports" / name, "--title", f"{chosen.task}: {name}")
        septet(verb, "evaluate", chosen.task, *common, *place, *chosen.evaluate, log=log, threads=threads)

    for name in config.sets:
        if SETS[name].alone:
            fine_tune(name)
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(fine_tune, [name for name in config.sets if not SETS[name].alone]))
    septet(verb, "report", "--reports", out / "reports", "--run", out / "runs/pretrain", log=log)
    for name in config.sets:
        report = json.loads((out / "reports" / name / "report.json").read_text())
        metric = report["primary_metric"]
        score = report["scores"][metric]
        beside = ", ".join(f"{n} {b['scores'][metric]['value']:.1f}" for n, b in report["baselines"].items())
        print(f"{name:22} {metric} {score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}]  ({beside})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
