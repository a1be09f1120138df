"""Prove what a pre-training run has seen and saved, and write it beside the run as certificate.json.

The order of the samples is a function of the seed and the data, so it is computed again, step by step, into a hash chain:
no sample of an epoch is left out or comes twice. Every file of every checkpoint is compared with its manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, code_version, problems, read_json, write_json


@dataclass(frozen=True)
class CertifyConfig:
    run_directory: Annotated[Path, tyro.conf.Positional]
    """what `septet pretrain` wrote"""


def run(config: CertifyConfig) -> Path:
    """Prints what holds and writes certificate.json; returns its path.

    Raises:
        UserError: no run there, data that has changed, a damaged file, or a sample that was lost or repeated.
    """
    from septet.modeling.checkpoint import checkpoints
    from septet.modeling.pretrain import METRICS_FILE, RUN_FILE, MetricsFile, PretrainConfig, plan_steps, same_run

    place = Path(config.run_directory)
    if not (place / RUN_FILE).is_file():
        raise UserError(f"{place}: holds no pre-training run (no {RUN_FILE}); give the --output of `septet pretrain`")
    started = read_json(place / RUN_FILE)
    settings = started["config"] | {"data": Path(started["config"]["data"]), "output": place}
    run_config = PretrainConfig(**settings)
    same_run(run_config, started)  # the data are still those of the run

    from septet.data.packed import PackedDataset

    data = PackedDataset(run_config.data, "train", run_config.mixture, run_config.seed)
    _, micro_batches = plan_steps(run_config, data.sequence_length, started["environment"]["num_processes"])
    saved = checkpoints(place)
    if not saved:
        raise UserError(f"{place}: has no finished checkpoint yet; let it save one")
    steps = saved[-1][0]
    damaged = [f"{path.name}: {problem}" for _, path in saved for problem in problems(path)]
    if (place / FILE_NAME).is_file():
        damaged += problems(place)
    if damaged:
        raise UserError(
            f"{place}: {damaged[0]} ({len(damaged)} in all); resume from the checkpoint before, or restore it"
        )
    logged = [row["step"] for row in MetricsFile(place, steps, enabled=False).rows() if "loss" in row]
    if logged != sorted(set(logged)):
        raise UserError(
            f"{place / METRICS_FILE}: its steps do not rise; the run's log was edited or mixed with another"
        )
    chain, epochs = order(data, steps, micro_batches * run_config.micro_batch_size)
    certificate = {
        "code_version": code_version(),
        "data_sha256": started["data_sha256"],
        "seed": run_config.seed,
        "steps": steps,
        "samples": steps * micro_batches * run_config.micro_batch_size,
        "order_sha256": chain,
        "sources": epochs,
        "lost": 0,
        "repeated": 0,
        "checkpoints": {
            path.name: {
                name: read_json(path / FILE_NAME)["files"][name]["sha256"]
                for name in ("model.safetensors", "optimizer.safetensors")
            }
            for _, path in saved
        },
        "environment": started["environment"],
    }
    write_json(place / "certificate.json", certificate)
    print(f"certify: {place}: {steps:,} steps, {certificate['samples']:,} samples, order {chain[:16]}")
    for name, source in epochs.items():
        print(
            f"  {name:<28} {source['samples']:>9,} samples of {source['sequences']:,} sequences, none lost or repeated"
        )
    print(f"  {len(saved)} checkpoints are as their manifests say; {place / 'certificate.json'}", flush=True)
    return place / "certificate.json"


def order(data: Any, steps: int, samples_per_step: int) -> tuple[str, dict[str, dict[str, int]]]:
    """Hash chain over the rows of every step, and how far each source has come.

    Raises:
        UserError: within an epoch of a source a sequence came twice (and so another not at all).
    """
    import numpy as np

    source_of = np.empty(len(data), dtype=np.int64)
    for index, rows in enumerate(data.sources.values()):
        source_of[rows] = index
    counts = np.zeros(len(data), dtype=np.int64)
    chain = hashlib.sha256()
    for step in range(steps):
        rows = data.rows(step * samples_per_step + np.arange(samples_per_step))
        chain = hashlib.sha256(chain.digest() + rows.astype("<i8").tobytes())
        np.add.at(counts, rows, 1)
    found = {}
    for index, (name, rows) in enumerate(data.sources.items()):
        mine = counts[source_of == index]
        if mine.max() - mine.min() > 1:
            raise UserError(
                f"{name}: one sequence came {mine.max()} times, another {mine.min()}; the order is no permutation"
            )
        found[name] = {"samples": int(mine.sum()), "sequences": len(rows), "whole_epochs": int(mine.min())}
    return chain.hexdigest(), found


if __name__ == "__main__":
    run_cli(run, CertifyConfig)
