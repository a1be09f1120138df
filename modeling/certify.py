"""Prove what a pre-training run has seen and saved, from its files and the packed data alone.

    septet certify runs/pretrain

The samples of every step are a pure function of (seed, step, mixture, data), so they are computed again, whatever
interruptions the run had: a chain of hashes over their row numbers, and how often each source's sequences were seen.
Checkpoints are read again and compared with their manifests. `certificate.json` in the run's directory holds it all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, SCHEMA_VERSION, code_version, fingerprint, problems, read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from septet.data.packed import PackedDataset

CERTIFICATE_FILE = "certificate.json"


@dataclass(frozen=True)
class CertifyConfig:
    run_directory: Annotated[Path, tyro.conf.Positional]
    """a pre-training run, finished or not"""
    data: Path | None = None
    """the packed set, if it has moved since"""


def run(config: CertifyConfig) -> Path:
    """Writes `certificate.json` and returns its path.

    Raises:
        UserError: not a run, a run without a whole step, other data than it was started with, or something that does
            not hold; there is no certificate then.
    """
    from septet.data.packed import PackedDataset
    from septet.modeling.checkpoint import checkpoints
    from septet.modeling.pretrain import RUN_FILE, PretrainConfig, plan_steps

    directory = config.run_directory
    if not (directory / RUN_FILE).is_file():
        raise UserError(f"{directory}: is not a pre-training run (no {RUN_FILE}); give what `septet pretrain` wrote")
    (directory / CERTIFICATE_FILE).unlink(missing_ok=True)  # an old one must not outlive what it speaks of
    described = read_json(directory / RUN_FILE)
    pretrain = PretrainConfig(**{**described["config"], "data": config.data or Path(described["config"]["data"])})
    saved = checkpoints(directory)
    if not saved:
        raise UserError(f"{directory}: has no whole checkpoint yet; certify it after --save-every steps")
    digest = fingerprint(pretrain.data)
    if digest != described["data_sha256"]:
        raise UserError(
            f"{pretrain.data}: is not the data of this run (sha256 {described['data_sha256'][:12]} then, {digest[:12]} "
            "now); give the packed set that it was started with as --data"
        )
    refuse(directory, [f"{pretrain.data}/{problem}" for problem in problems(pretrain.data)])
    data = PackedDataset(pretrain.data, "train", pretrain.mixture, pretrain.seed)
    total_steps, micro_batches = plan_steps(pretrain, data.sequence_length, described["environment"]["num_processes"])
    done, per_step = saved[-1][0], micro_batches * pretrain.micro_batch_size

    failures = []
    folders = [path for _, path in saved]
    if (directory / FILE_NAME).is_file():
        folders.append(directory / "final")
        failures += problems(directory)
        if done != total_steps:
            failures.append(f"the run is finished after {total_steps} steps, but its last checkpoint is of step {done}")
    for step, path in saved:
        failures += [f"{path.name}/{problem}" for problem in problems(path)]
        if not failures and read_json(path / "training_state.json")["step"] != step:
            failures.append(f"{path.name}/training_state.json: is of another step")
    failures += metrics_problems(directory, pretrain.tokens_per_step)
    refuse(directory, failures)

    tensors = {path.name: tensor_digests(path) for path in folders}
    if "final" in tensors and tensors["final"]["weights"] != tensors[saved[-1][1].name]["weights"]:
        failures.append(f"final: its weights are not those of step {done}")
    chain, rows = hash_chain(data, done, per_step, digest)
    sources = epochs_by_source(data, rows)
    failures += [
        f"{name}: {seen['lost']} sequences lost, {seen['repeated']} repeated within an epoch"
        for name, seen in sources.items()
        if seen["lost"] or seen["repeated"]
    ]
    refuse(directory, failures)
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "run": described,
        "steps": {"done": done, "planned": total_steps},
        "samples": len(rows),
        "tokens": len(rows) * data.sequence_length,
        "rows_sha256": {str(step): chain[step - 1] for step, _ in saved},
        "sources": sources,
        "tensors": tensors,
    }
    write_json(directory / CERTIFICATE_FILE, certificate)
    print(table(certificate), flush=True)
    print(f"certify: all of it holds; {directory / CERTIFICATE_FILE}", flush=True)
    return directory / CERTIFICATE_FILE


def refuse(directory: Path, failures: list[str]) -> None:
    """Raises a `UserError` that names the first failure and the number of others."""
    if failures:
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(
            f"{directory}: cannot be certified: {failures[0]}{others}; restore that file, or go on from a whole "
            "checkpoint with --resume"
        )


def hash_chain(data: PackedDataset, steps: int, samples_per_step: int, start: str) -> tuple[list[str], np.ndarray]:
    """The chain over the row numbers of steps 1 .. `steps`, and all of them in order, (steps x samples_per_step,).

    Link n is SHA-256(link n-1 as hexadecimal text, then the step's row numbers as little-endian int64); link 0 is
    `start`. Two runs with the same last link have read the same sequences in the same order.
    """
    import numpy as np
    from tqdm import tqdm

    chain, rows = [], []
    link = start
    for step in tqdm(range(steps), desc="certify", unit=" steps", leave=False, mininterval=1):
        rows.append(data.rows(np.arange(step * samples_per_step, (step + 1) * samples_per_step)))
        link = hashlib.sha256(link.encode() + rows[-1].astype("<i8").tobytes()).hexdigest()
        chain.append(link)
    return chain, np.concatenate(rows)


def epochs_by_source(data: PackedDataset, rows: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of each source: sequences, samples seen, epochs, and how many sequences were lost or repeated in an epoch.

    Lost are those that a completed epoch passes over; repeated those that come twice before the epoch is over.
    """
    import numpy as np

    out = {}
    for name, members in data.sources.items():
        seen = rows[np.isin(rows, members)]
        lost = repeated = 0
        for start in range(0, len(seen), len(members)):
            epoch = seen[start : start + len(members)]
            distinct = len(np.unique(epoch))
            repeated += len(epoch) - distinct
            lost += len(members) - distinct if len(epoch) == len(members) else 0
        epochs = round(len(seen) / len(members), 4)
        out[name] = {
            "sequences": len(members), "samples": len(seen), "epochs": epochs, "lost": lost, "repeated": repeated
        }  # fmt: skip
    return out


def tensor_digests(folder: Path) -> dict[str, str]:
    """SHA-256 over the tensors of a checkpoint's weights and optimizer state, whatever files they lie in."""
    files = {
        "weights": sorted(folder.glob("model*.safetensors")),
        "optimizer": list(folder.glob("optimizer.safetensors")),
    }
    out = {}
    for part, paths in files.items():
        if paths:
            lines = sorted(line for path in paths for line in _tensor_lines(path))
            out[part] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return out


def _tensor_lines(path: Path) -> Iterator[str]:
    """`name dtype shape sha256` of each tensor of a safetensors file."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name).contiguous()
            digest = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}"


def metrics_problems(directory: Path, tokens_per_step: int) -> list[str]:
    """What is wrong with `metrics.jsonl`: steps that do not rise, tokens that do not follow from them, losses not finite."""
    from septet.modeling.pretrain import METRICS_FILE, MetricsFile

    rows = MetricsFile(directory, 0, enabled=False).rows()
    found = [] if rows else [f"{METRICS_FILE}: holds no row"]
    last = {"loss": 0, "validation": 0}
    for row in rows:
        kind = "loss" if "loss" in row else "validation"
        if row["step"] <= last[kind]:
            found.append(f"{METRICS_FILE}: step {row['step']} ({kind}) comes after step {last[kind]}")
        if row["tokens"] != row["step"] * tokens_per_step:
            found.append(f"{METRICS_FILE}: step {row['step']} states {row['tokens']:,} tokens")
        if kind == "loss" and not math.isfinite(row["loss"]):
            found.append(f"{METRICS_FILE}: step {row['step']} has loss {row['loss']}")
        last[kind] = row["step"]
    return found


def table(certificate: dict[str, Any]) -> str:
    """The certificate in a few lines."""
    steps = certificate["steps"]
    lines = [
        f"steps    {steps['done']:,} of {steps['planned']:,}; {certificate['samples']:,} samples, {certificate['tokens']:,} tokens",
        *(f"rows     step {step}: sha256 {link[:16]}" for step, link in certificate["rows_sha256"].items()),
        *(f"weights  {name}: sha256 {parts['weights'][:16]}" for name, parts in certificate["tensors"].items()),
    ]
    for name, seen in certificate["sources"].items():
        lines.append(
            f"source   {name}: {seen['samples']:,} samples of {seen['sequences']:,} sequences, {seen['epochs']:g} epochs, "
            f"{seen['lost']} lost, {seen['repeated']} repeated"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(run, CertifyConfig)
