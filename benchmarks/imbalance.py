"""What helps rare classes: every option of `septet finetune` for classes of unequal size beside plain training.

    python benchmarks/imbalance.py --base build/real/runs/pretrain/final --data DATA --output build/imbalance

DATA holds `csl_category_zh` (13 classes, 44 % to 0.8 %) and `synopsis_fr` (14 sections). Every option is trained with each
seed from one checkpoint at the same number of epochs (some also for as many steps as over-sampling takes), and
scored on the validation rows. (`--tune-thresholds` chooses on validation rows, so the last fifth of train is put aside for
all to serve as theirs.) A difference is that of the mean over seeds; its interval and p-value are paired, over the rows of
all seeds together, so that they speak of these rows; the spread over seeds stands beside it. What is done is not done again.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from real_route import septet

from septet.data.documents import read_rows, write_jsonl
from septet.tasks.harness import metrics
from septet.tasks.harness.imbalance import drawn
from septet.tasks.harness.report import read_predictions
from septet.tasks.harness.task import split_file

VERB = "septet.tasks.cli"
OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "class weights, balanced": ("--class-weights", "balanced"),
    "class weights, sqrt": ("--class-weights", "sqrt"),
    "class weights, effective": ("--class-weights", "effective"),
    "focal loss": ("--loss", "focal"),
    "logit-adjusted loss": ("--loss", "logit_adjusted"),
    "over-sampling": ("--sampling", "over"),
    "under-sampling": ("--sampling", "under"),
    "synthetic rows": ("--sampling", "synthetic"),
    "tuned thresholds": ("--tune-thresholds",),
}
LONGER = ", longer"  # for as many steps as over-sampling takes, whose epochs hold more rows
OPTIONS |= {f"{name}{LONGER}": OPTIONS[name] for name in ("plain", "class weights, sqrt", "class weights, balanced")}
SETS = {  # folder, how it is read, the column of the class, and how alike sampling makes classes
    "csl_category_zh": ("csl_category_zh", ("--lang", "zh"), "label", "4"),
    "synopsis_fr sections": (
        "synopsis_fr",
        ("--lang", "fr", "--columns", "text", "document", "label", "section"),
        "section",
        "1",  # the most frequent of these 14 has 2.5 times the rows of the rarest: a ratio of 4 would change nothing
    ),
}
CLASSES = 14  # the most frequent ones: sections have a long tail of classes with a row or two


@dataclass(frozen=True)
class Config:
    base: Path
    """the pre-trained checkpoint"""
    data: Path
    """folder of the real sets"""
    output: Path = Path("build/imbalance")
    """where everything goes"""
    seeds: int = 3
    """runs of each option"""
    epochs: float = 4
    """of each run"""
    max_rows: int = 4000
    """rows of each set, from its first one"""
    jobs: int = os.cpu_count() or 1
    """runs at the same time, each on one core"""
    sets: tuple[str, ...] = field(default_factory=lambda: tuple(SETS))
    options: tuple[str, ...] = field(default_factory=lambda: tuple(OPTIONS))


def cut(config: Config, name: str) -> Path:
    """The set with a fifth of its train rows put aside as validation, and its validation as test."""
    folder = config.output / "sets" / name.replace(" ", "_")
    if not (folder / "test.jsonl.gz").is_file():
        source, column = config.data / SETS[name][0], SETS[name][2]
        train, test = (read_rows(split_file(source, split)) for split in ("train", "validation"))
        classes = {label for label, _ in Counter(row[column] for row in train).most_common(CLASSES)}
        train, test = ([row for row in rows if row[column] in classes] for rows in (train, test))
        train = train[: config.max_rows]
        border = len(train) * 4 // 5
        write_jsonl(folder / "train.jsonl.gz", train[:border])
        write_jsonl(folder / "validation.jsonl.gz", train[border:])
        write_jsonl(folder / "test.jsonl.gz", test)
    return folder


def place_of(config: Config, name: str, option: str, seed: int) -> Path:
    """Where one run lies."""
    return config.output / name.replace(" ", "_") / option.replace(" ", "_").replace(",", "") / f"seed{seed}"


def one(config: Config, name: str, option: str, seed: int) -> None:
    """One run and its evaluation."""
    place = place_of(config, name, option, seed)
    data, reading = cut(config, name), SETS[name][1]
    common = ("classification", "--data", data, *reading)
    chosen, epochs = OPTIONS[option], config.epochs
    if "--sampling" in chosen:
        chosen += ("--sampling-ratio", SETS[name][3])
    if option.endswith(LONGER):
        labels = [str(row[SETS[name][2]]) for row in read_rows(data / "train.jsonl.gz")]
        kept, again = drawn(labels, "over", float(SETS[name][3]), seed)
        epochs = round(epochs * (len(kept) + len(again)) / len(labels), 2)
    how = ("--base", config.base, "--epochs", str(epochs), "--seed", str(seed), "--resume")
    septet(VERB, "finetune", *common, *how, "--output", place / "run", *chosen, log=place / "log", threads=1)
    septet(
        VERB,
        "evaluate",
        *common,
        "--model",
        place / "run" / "final",
        "--output",
        place / "report",
        log=place / "log",
        threads=1,
    )
    score = json.loads((place / "report" / "report.json").read_text())["scores"]["macro_f1"]["value"]
    print(f"{name}: {option}, seed {seed}: macro-F1 {score:.1f}", flush=True)


def answers(config: Config, name: str, option: str) -> tuple[list[str], list[str], list[str], list[float]]:
    """Predictions, references and languages of all seeds' rows, and each seed's macro-F1."""
    rows, scores = [], []
    for seed in range(config.seeds):
        place = place_of(config, name, option, seed)
        rows += read_predictions(place / "report")
        scores.append(json.loads((place / "report" / "report.json").read_text())["scores"]["macro_f1"]["value"])
    return [r["prediction"] for r in rows], [r["reference"] for r in rows], [r["lang"] for r in rows], scores


def main(config: Config) -> None:
    todo = [(n, o, seed) for n in config.sets for o in config.options for seed in range(config.seeds)]
    for name in config.sets:
        cut(config, name)
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda each: one(config, *each), todo))
    for name in config.sets:
        plain, references, languages, plain_scores = answers(config, name, "plain")
        print(f"\n{name}\n\n| option | macro-F1, mean ± over seeds | minus plain [95 %] | p | accuracy |")
        print("|---|---:|---:|---:|---:|")
        for option in config.options:
            predictions, _, _, scores = answers(config, name, option)
            accuracy = metrics.score("classification", predictions, references, languages)["accuracy"]
            spread = (
                f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
                if len(scores) > 1
                else f"{scores[0]:.1f}"
            )
            if option == "plain":
                print(f"| {option} | {spread} | | | {accuracy:.1f} |")
                continue
            found = metrics.difference("classification", "macro_f1", predictions, plain, references, languages)
            mean = statistics.mean(scores) - statistics.mean(plain_scores)
            interval = f"{mean:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
            print(f"| {option} | {spread} | {interval} | {found['p_value']:.3f} | {accuracy:.1f} |")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
