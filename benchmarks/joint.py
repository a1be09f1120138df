"""What one checkpoint for both readings costs: the joint objective beside causal-only and masked-only, at equal compute.

    python benchmarks/joint.py --packed build/packed --data DATA --output build/joint --tokens 1000000 --seeds 3

Every objective is pre-trained with each seed from the same first weights, for as many steps as cost the FLOPs of the
causal run (`septet.modeling.plan.training_flops_per_token`: a masked reading projects fewer tokens onto the vocabulary).
Compared are held-out bits per byte, where the checkpoint reads causally, and the scores of a classifier, a tagger and an
extractive reader fine-tuned from it, all of which read in both directions. DATA holds `trec6_en`, `conll2003_en` and
`piaf_fr`.

The unit is a seed: a difference is the mean over seeds, paired by seed, with its t interval and the smallest difference
that so many seeds would show in four cases of five at this spread. What is done is not done again.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from real_route import septet

VERB = "septet.tasks.cli"
TASKS = {
    "trec6_en": ("classification", ("--lang", "en", "--epochs", "4")),
    "conll2003_en": ("ner", ("--lang", "en", "--epochs", "2", "--max-rows", "5000")),
    "piaf_fr": ("qa", ("--lang", "fr", "--epochs", "2", "--max-rows", "1200")),
}


@dataclass(frozen=True)
class Config:
    packed: Path
    """what `septet pack` wrote"""
    data: Path
    """folder of the task sets"""
    output: Path = Path("build/joint")
    """where everything goes"""
    preset: str = "nano"
    """shape of the model"""
    tokens: int = 1_000_000
    """tokens of a causal run"""
    tokens_per_step: int = 2048
    """tokens of an optimizer step"""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """of the rows that joint reads causally"""
    seeds: int = 3
    """runs of each objective"""
    jobs: int = os.cpu_count() or 1
    """runs at the same time, each on one core"""


def place_of(config: Config, name: str, seed: int) -> Path:
    """Where one run lies."""
    return config.output / name.replace(", ", "_").replace(" ", "_") / f"seed{seed}"


def objectives(config: Config) -> dict[str, tuple[str, float]]:
    """name -> (objective, share that is read causally)."""
    joint = {f"joint, {share:g} causal": ("joint", share) for share in config.shares}
    return {"causal": ("causal", 0.5), "masked": ("mlm", 0.5), **joint}


def steps(config: Config, objective: str, share: float) -> int:
    """Steps that cost as much as the causal run's."""
    from septet.data.manifest import read_manifest
    from septet.modeling.plan import training_flops_per_token
    from septet.modeling.presets import preset_config

    manifest = read_manifest(config.packed, "pack")
    length = manifest["config"]["sequence_length"]
    shape = preset_config(config.preset, vocab_size=manifest["counts"]["vocab_size"], max_position_embeddings=length)
    cost = {
        name: training_flops_per_token(shape, length, name, joint_causal_share=share) for name in ("causal", objective)
    }
    return round(config.tokens / config.tokens_per_step * cost["causal"] / cost[objective])


def one(config: Config, name: str, seed: int) -> None:
    """Pre-trains, and fine-tunes and scores each task."""
    objective, share = objectives(config)[name]
    place = place_of(config, name, seed)
    log = place / "log"
    septet(
        VERB, "pretrain", "--preset", config.preset, "--objective", objective, "--joint-causal-share", str(share),
        "--data", config.packed, "--output", place / "pretrain", "--steps", str(steps(config, objective, share)),
        "--tokens-per-step", str(config.tokens_per_step), "--seed", str(seed), "--save-every", "10000",
        "--validate-every", "10000", "--validation-sequences", "256", "--resume", log=log, threads=1,
    )  # fmt: skip
    for data, (task, reading) in TASKS.items():
        run = place / data
        common = (task, "--data", config.data / data)
        base = ("--base", place / "pretrain" / "final", "--output", run / "run", "--seed", str(seed), "--resume")
        septet(VERB, "finetune", *common, *base, *reading, log=log, threads=1)
        septet(
            VERB,
            "evaluate",
            *common,
            *reading[:2],
            "--model",
            run / "run" / "final",
            "--output",
            run / "report",
            log=log,
            threads=1,
        )
    print(
        f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found(config, name, seed).items()), flush=True
    )


def found(config: Config, name: str, seed: int) -> dict[str, float]:
    """Every figure of a run."""
    place = place_of(config, name, seed)
    validation = json.loads((place / "pretrain" / "manifest.json").read_text())["counts"]["validation"]
    figures = {f"bits per byte, {k}": v["bits_per_byte"] for k, v in validation.items() if "bits_per_byte" in v}
    for data in TASKS:
        report = json.loads((place / data / "report" / "report.json").read_text())
        metric = report["primary_metric"]
        figures[f"{data}, {metric}"] = report["scores"][metric]["value"]
    return figures


def difference(first: list[float], second: list[float]) -> str:
    """Mean of the pairs' differences, its 95 % t interval, and the smallest one that would be found."""
    from scipy.stats import t

    pairs = [a - b for a, b in zip(first, second, strict=True)]
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs))
    half, power = t.ppf(0.975, len(pairs) - 1), t.ppf(0.8, len(pairs) - 1)
    return (
        f"{mean:+.3f} [{mean - half * error:+.3f}, {mean + half * error:+.3f}], could show {(half + power) * error:.3f}"
    )


def main(config: Config) -> None:
    names = list(objectives(config))
    todo = [(name, seed) for seed in range(config.seeds) for name in names]
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda each: one(config, *each), todo))
    all_of = {name: [found(config, name, seed) for seed in range(config.seeds)] for name in names}
    figures = list(dict.fromkeys(key for rows in all_of.values() for key in rows[0]))
    print("\n| figure | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for key in figures:
        cells = [[row[key] for row in all_of[name]] if key in all_of[name][0] else [] for name in names]
        print(f"| {key} | " + " | ".join(f"{statistics.mean(c):.3f}" if c else "–" for c in cells) + " |")
    for other in ("causal", "masked"):
        print(f"\n| joint minus {other} | " + " | ".join(names[2:]) + " |\n|---|" + "---:|" * len(names[2:]))
        for key in figures:
            if key in all_of[other][0] and config.seeds > 1:
                beside = [row[key] for row in all_of[other]]
                cells = [difference([row[key] for row in all_of[name]], beside) for name in names[2:]]
                print(f"| {key} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
