"""Prove what a pre-training run has seen and saved, from its files and the packed data.

    septet certify runs/pretrain
    accelerate launch --config_file accelerate_configs/cpu.yaml -m septet.modeling.certify runs/pretrain --replay 1000

The samples of every step are a pure function of (seed, step, mixture, data). They are computed again in closed form and
compared with what the loop recorded of the rows that its processes really read: a chain of hashes in every checkpoint
and every logged row, and how often each source was seen. Checkpoints are read again and compared with their manifests.
--replay trains from one kept checkpoint to the next once more, through the loop itself, and compares every byte of the
weights and of the optimizer's state; launch it as the run was launched. `certificate.json` in the run's directory holds
it all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, SCHEMA_VERSION, code_version, fingerprint, problems, read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from septet.data.packed import PackedDataset
    from septet.modeling.steps import Steps

CERTIFICATE_FILE = "certificate.json"
RANDOM_STATE = "there is none to keep: batch, masks and dropout are functions of (seed, step, micro-batch)"
SAMPLES_AT_ONCE = 1 << 16
# What decides which rows a step reads; nothing else does.
ORDER = ("data", "mixture", "seed", "tokens_per_step", "batch_schedule")


@dataclass(frozen=True)
class CertifyConfig:
    run_directory: Annotated[Path, tyro.conf.Positional]
    """a pre-training run, finished or not"""
    data: Path | None = None
    """the packed set, if it has moved since"""
    replay: int | None = None
    """step of a kept checkpoint (0: the first weights) from which to train again to the next one that is kept"""


def run(config: CertifyConfig) -> Path:
    """Writes `certificate.json` and returns its path.

    Raises:
        UserError: not a run, a run without a whole step, other data than it was started with, a replay that cannot be
            made, or something that does not hold; there is no certificate then.
    """
    from septet.modeling.checkpoint import STATE_FILE, checkpoints, load_state
    from septet.modeling.start import RUN_FILE
    from septet.modeling.watch import METRICS_FILE, SPIKES_FILE, MetricsFile

    directory = config.run_directory
    is_main = int(os.environ.get("RANK", "0")) == 0  # every process checks, so that all take the same decisions
    if not (directory / RUN_FILE).is_file():
        raise UserError(f"{directory}: is not a pre-training run (no {RUN_FILE}); give what `septet pretrain` wrote")
    if is_main:
        (directory / CERTIFICATE_FILE).unlink(missing_ok=True)  # an old one must not outlive what it speaks of
    described = read_json(directory / RUN_FILE)
    place = Path(config.data or described["config"]["data"])
    saved = dict(checkpoints(directory))
    if not saved:
        raise UserError(f"{directory}: has no whole checkpoint yet; certify it after --save-every steps")
    replay_end = None if config.replay is None else end_of_replay(directory, described, list(saved), config.replay)
    digest = fingerprint(place)
    if digest != described["data_sha256"]:
        raise UserError(
            f"{place}: is not the data of this run (sha256 {described['data_sha256'][:12]} then, {digest[:12]} "
            "now); give the packed set that it was started with as --data"
        )

    # ---- the files
    failures = [f"{place}/{problem}" for problem in problems(place)]
    for path in saved.values():
        failures += [f"{path.name}/{problem}" for problem in problems(path)]
    done, is_finished = max(saved), (directory / FILE_NAME).is_file()
    if is_finished:
        failures += problems(directory)
    refuse(directory, failures)

    # ---- the rows
    orders, unproved = orders_of(described, place, list(saved))
    first, planned = orders[0].first_step, orders[-1].steps.total
    states = {step: load_state(path) for step, path in saved.items()}
    rows, spikes = (MetricsFile(directory, 0, False, name).rows() for name in (METRICS_FILE, SPIKES_FILE))
    if is_finished and done != planned:
        failures.append(f"the run is finished after {planned} steps, but its last checkpoint is of step {done}")
    failures += [f"step_{step}/{STATE_FILE}: is of another step" for step in states if states[step]["step"] != step]
    failures += metrics_problems(rows, orders)
    refuse(directory, failures)
    # Where the rows before are of data that is not here, the chain starts from what a checkpoint recorded.
    link = states[first]["rows_sha256"] if unproved else described.get("first_rows_sha256", digest)
    recorded = [(step, f"step_{step}/{STATE_FILE}", state) for step, state in states.items() if step >= first]
    logged = [(row["step"], METRICS_FILE, row) for row in rows if "loss" in row and row["step"] > first]
    chain, seen, sources = recompute(orders, link, done, {step for step, *_ in recorded + logged})
    failures += row_problems(recorded + logged, chain, seen, starts_empty=first == 0)
    failures += spike_problems(spikes, orders)
    failures += [
        f"{name}: {counts['lost']} sequences lost, {counts['repeated']} repeated within an epoch"
        for name, counts in sources.items()
        if counts["lost"] or counts["repeated"]
    ]

    # ---- the tensors
    folders = [*saved.values(), *([directory / "final"] if is_finished else [])]
    tensors = {path.name: tensor_digests(path) for path in folders}
    if is_finished and tensors["final"]["weights"] != tensors[f"step_{done}"]["weights"]:
        failures.append(f"final: its weights are not those of step {done}")
    refuse(directory, failures)
    replayed = None if replay_end is None else replay(directory, place, config.replay, replay_end)

    samples = sum(counts["samples"] for counts in sources.values())
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "run": described,
        "steps": {"first": first, "done": done, "planned": planned, "unproved": unproved},
        "orders": [{"first_step": order.first_step, "because": order.because} for order in orders],
        "samples": samples,
        "tokens": samples * orders[0].steps.packed_length,
        "rows_sha256": {str(step): chain[step] for step, *_ in recorded},
        "logged": len(logged),
        "sources": sources,
        "tensors": tensors,
        "random_state": RANDOM_STATE,
        "replayed": replayed,
    }
    if is_main:
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


# ---- the rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """Steps of a run whose samples come in one order."""

    first_step: int
    because: str
    """what set it up"""
    steps: Steps
    data: PackedDataset

    def rows(self, first: int, end: int) -> np.ndarray:
        """Row numbers that the steps from `first` to before `end` read, one after the other."""
        import numpy as np

        return self.data.rows(np.arange(self.steps.samples_before(first), self.steps.samples_before(end)))


def orders_of(described: Mapping[str, Any], place: Path, saved: list[int]) -> tuple[list[Order], str | None]:
    """The orders that a run went through, the first one first, and what keeps its earliest steps from being proved.

    A run that went on with --allow-changes may have several. Where its data changed, the steps before cannot be proved:
    the first order starts at the first checkpoint that is kept from then on.

    Args:
        described: `run.json`.
        place: the packed set, the one that the run read last.
        saved: steps of the kept checkpoints.

    Raises:
        UserError: the data changed, and no checkpoint has been saved since.
    """
    from septet.data.packed import PackedDataset
    from septet.modeling.pretrain import PretrainConfig
    from septet.modeling.steps import plan_steps

    config, first_step, unproved = dict(described["config"]), described["first_step"], None
    spans = []  # (first step, what set the order up, configuration), the last one first
    for change in reversed(described["changes"]):
        changed = [name for name in ORDER if name in change["changes"]]
        if "data" in changed:
            unproved = f"the data was another until step {change['step']}"
            first_step = min((step for step in saved if step >= change["step"]), default=None)
            if first_step is None:
                raise UserError(
                    f"{place}: {unproved}, and no checkpoint has been saved since; go on with --resume, and certify then"
                )
            break
        if changed:
            spans.append((change["step"], f"{' and '.join(changed)} changed", dict(config)))
        config.update({name: old for name, (old, _) in change["changes"].items()})
    begins = "branched from a checkpoint of another run" if first_step else "the run's start"
    spans.append((first_step, unproved or begins, config))

    orders: list[Order] = []
    for step, because, fields in reversed(spans):
        pretrain = PretrainConfig(**{**fields, "data": place})
        data = PackedDataset(place, "train", pretrain.mixture, pretrain.seed)
        # Which process reads a sample does not matter to the order, so it is planned as for one.
        steps = plan_steps(pretrain, data.sequence_length, num_readers=1)
        orders = [earlier for earlier in orders if earlier.first_step < max(step, first_step)]
        orders.append(Order(max(step, first_step), because, steps, data))
    return orders, unproved


def order_at(orders: list[Order], step: int) -> Order | None:
    """The order in which step `step`, counted from 0, was read; None before the first one."""
    return next((order for order in reversed(orders) if order.first_step <= step), None)


def recompute(
    orders: list[Order], link: str, done: int, wanted: set[int]
) -> tuple[dict[int, str], dict[int, Counter], dict[str, dict[str, Any]]]:
    """The chain of hashes and the samples of each source after the `wanted` steps, and what `Epochs` counts to `done`.

    Link n is SHA-256(link n-1 as hexadecimal text, then step n's row numbers as little-endian int64); link 0 is the
    packed set's fingerprint. Two runs with the same last link have read the same sequences in the same order.

    Args:
        link: before the first step of the first order.
        done: the last saved step; later ones may have been logged.
    """
    from tqdm import tqdm

    from septet.modeling.watch import SeenSources

    first, last = orders[0].first_step, max(wanted | {done})
    seen, epochs = SeenSources(orders[0].data), Epochs(orders[0].data)
    chain, counts = {first: link}, {first: Counter()}
    bar = tqdm(total=last - first, desc="certify", unit=" steps", leave=False, mininterval=1, disable=None)
    for order, following in itertools.zip_longest(orders, orders[1:]):
        begin, end = order.first_step, following.first_step if following else last
        epochs.enter(order.data.epochs(order.steps.samples_before(begin)))
        while begin < end:
            block_end = min(end, begin + max(1, SAMPLES_AT_ONCE // order.steps.samples(begin)))
            rows, offset = order.rows(begin, block_end), order.steps.samples_before(begin)
            epochs.add(rows[: max(0, order.steps.samples_before(min(block_end, done)) - offset)])
            for step in range(begin, block_end):
                mine = rows[order.steps.samples_before(step) - offset :][: order.steps.samples(step)]
                link = hashlib.sha256(link.encode() + mine.astype("<i8").tobytes()).hexdigest()
                seen.add(mine)
                if step + 1 in wanted:
                    chain[step + 1], counts[step + 1] = link, Counter(seen.state())
            bar.update(block_end - begin)
            begin = block_end
    bar.close()
    return chain, counts, epochs.by_source()


class Epochs:
    """How often the sequences of each source come in the rows of a run, epoch by epoch.

    Lost are those that a completed epoch passes over; repeated those that come twice before the epoch is over.
    """

    def __init__(self, data: PackedDataset):
        self.rows, self.source_of_row = data.sources, data.source_of_row
        self.samples, self.lost, self.repeated = (dict.fromkeys(self.rows, 0) for _ in range(3))
        self.enter(dict.fromkeys(self.rows, 0.0))

    def enter(self, epochs: Mapping[str, float]) -> None:
        """Begins at a place of an order, so many epochs of each source after its start."""
        import numpy as np

        self.met = np.zeros(len(self.source_of_row), dtype=bool)  # in the current epoch of its source, since `enter`
        self.room = {n: len(rows) - round(epochs[n] * len(rows)) % len(rows) for n, rows in self.rows.items()}
        self.left = dict(self.room)

    def add(self, rows: np.ndarray) -> None:
        """Counts the next row numbers, (n,)."""
        import numpy as np

        source = self.source_of_row[rows]
        for index, (name, members) in enumerate(self.rows.items()):
            mine = rows[source == index]
            self.samples[name] += len(mine)
            while len(mine):
                part, mine = mine[: self.left[name]], mine[self.left[name] :]
                distinct = np.unique(part)
                self.repeated[name] += len(part) - int((~self.met[distinct]).sum())
                self.met[distinct] = True
                self.left[name] -= len(part)
                if not self.left[name]:
                    self.lost[name] += self.room[name] - int(self.met[members].sum())
                    self.met[members] = False
                    self.left[name] = self.room[name] = len(members)

    def by_source(self) -> dict[str, dict[str, Any]]:
        """Of each source: sequences, samples seen, epochs, sequences lost and repeated."""
        return {
            name: {
                "sequences": len(members),
                "samples": self.samples[name],
                "epochs": round(self.samples[name] / len(members), 4),
                "lost": self.lost[name],
                "repeated": self.repeated[name],
            }
            for name, members in self.rows.items()
        }


def row_problems(
    records: list[tuple[int, str, Mapping[str, Any]]],
    chain: Mapping[int, str],
    counts: Mapping[int, Counter],
    starts_empty: bool,
) -> list[str]:
    """Where what the loop recorded of the rows that it read is not what the closed form gives.

    Args:
        records: (step, file, its `rows_sha256`, whole or 16 digits of it, and `seen`); checkpoints come first.
        chain: links by step.
        counts: samples of each source by step, since the chain's start.
        starts_empty: whether the run had seen nothing there; a branch goes on counting what it has.
    """
    before = Counter()
    if not starts_empty:
        step, _, record = records[0]
        before.update(record["seen"])
        before.subtract(counts[step])
    found = []
    for step, file, record in sorted(records, key=lambda record: record[:2]):
        if record["rows_sha256"] not in (chain[step], chain[step][:16]):
            found.append(f"{file}: by step {step} it had not read the rows that seed, mixture and data give, in order")
        elif min(before.values(), default=0) < 0 or before + counts[step] != +Counter(record["seen"]):
            found.append(f"{file}: step {step} counts other samples of the sources than it had read")
    return found


def spike_problems(spikes: list[Mapping[str, Any]], orders: list[Order]) -> list[str]:
    """Rows of `spikes.jsonl` that name another batch than their step's."""
    found = []
    for spike in spikes:
        step = spike["step"] - 1
        order = order_at(orders, step)
        if order and order.rows(step, step + 1).tolist() != spike["rows"]:
            found.append(f"spikes.jsonl: step {spike['step']} names other rows than it read")
    return found


def metrics_problems(rows: list[Mapping[str, Any]], orders: list[Order]) -> list[str]:
    """What is wrong with `metrics.jsonl`: steps that do not rise, tokens that do not follow from them, losses not finite."""
    found = [] if rows else ["metrics.jsonl: holds no row"]
    last = {"loss": 0, "validation": 0}
    for row in rows:
        step, kind = row["step"], "loss" if "loss" in row else "validation"
        order = order_at(orders, step - 1)
        if not last[kind] < step <= orders[-1].steps.total:
            found.append(f"metrics.jsonl: step {step} ({kind}) comes after step {last[kind]}")
        elif order and row["tokens"] != order.steps.tokens_before(step):
            found.append(f"metrics.jsonl: step {step} states {row['tokens']:,} tokens")
        if kind == "loss" and not math.isfinite(row["loss"]):
            found.append(f"metrics.jsonl: step {step} has loss {row['loss']}")
        last[kind] = step
    return found


# ---- the tensors ------------------------------------------------------------------------------------------------------


def tensor_digests(folder: Path) -> dict[str, str]:
    """SHA-256 over the tensors of a checkpoint's weights and optimizer state, whatever files and shards they lie in."""
    out = {}
    for part in ("weights", "optimizer"):
        lines = tensor_lines(folder, part)
        if lines:
            out[part] = hashlib.sha256("\n".join(lines.values()).encode()).hexdigest()
    return out


def tensor_lines(folder: Path, part: str) -> dict[str, str]:
    """`name dtype shape sha256` of each tensor of a checkpoint's "weights" or "optimizer", by name.

    torch's distributed checkpoint writes where a shard begins into the header of its safetensors file.

    Raises:
        UserError: the shards of a tensor do not make up the whole of it.
    """
    import torch
    from safetensors import safe_open

    from septet.modeling.checkpoint import OPTIMIZER_FOLDER

    pattern = "model*.safetensors" if part == "weights" else f"{OPTIMIZER_FOLDER}/*.safetensors"
    shards: dict[str, list[tuple[Path, list[int]]]] = {}
    for path in sorted(folder.glob(pattern)):
        with safe_open(path, "pt") as file:
            places = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                shards.setdefault(name, []).append((path, places.get(name, {}).get("saved_offsets")))
    lines = {}
    for name in sorted(shards):
        parts = []
        for path, offsets in shards[name]:
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(name)
            parts.append((offsets or [0] * tensor.dim(), tensor))
        shape = [max(o[d] + t.shape[d] for o, t in parts) for d in range(parts[0][1].dim())]
        if sum(t.numel() for _, t in parts) != math.prod(shape):
            raise UserError(f"{folder}: the shards of {name} do not make up the whole of it; give an older checkpoint")
        whole = torch.empty(shape, dtype=parts[0][1].dtype)
        for offsets, tensor in parts:
            whole[tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor
        digest = hashlib.sha256(whole.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        lines[name] = f"{name} {whole.dtype} {tuple(whole.shape)} {digest}"
    return lines


# ---- training again ---------------------------------------------------------------------------------------------------


def end_of_replay(directory: Path, described: Mapping[str, Any], saved: list[int], start: int) -> int:
    """The kept checkpoint after `start`.

    Raises:
        UserError: there is none, none of step `start` is kept, or options changed between them.
    """
    if start not in saved and not start == described["first_step"] == 0:
        kept = ", ".join(map(str, sorted(saved)))
        raise UserError(f"--replay {start}: {directory} keeps the checkpoints of steps {kept}; give one of them")
    end = min((step for step in saved if step > start), default=None)
    if end is None:
        raise UserError(f"--replay {start}: {directory} keeps no later checkpoint to compare with; give an earlier one")
    for change in described["changes"]:
        if start < change["step"] < end:
            names = ", ".join(change["changes"])
            raise UserError(
                f"--replay {start}: {names} changed at step {change['step']}, before the next checkpoint, of step {end}; "
                "give a later one"
            )
    return end


def replay(directory: Path, place: Path, start: int, end: int) -> dict[str, int]:
    """Trains from the checkpoint of step `start` to that of step `end` again, and compares every byte.

    Raises:
        UserError: this is another environment than the checkpoint was made in, or something differs.
    """
    from accelerate import Accelerator

    from septet.modeling import pretrain
    from septet.modeling.checkpoint import STATE_FILE, load_state
    from septet.modeling.machine import describe_environment

    wanted, again = directory / f"step_{end}", directory / ".replay"
    manifest, state, accelerator = read_json(wanted / FILE_NAME), load_state(wanted), Accelerator()
    environment = describe_environment(accelerator)
    for name, then in state["environment"].items():
        if environment.get(name) != then:
            raise UserError(
                f"--replay {start}: step {end} was trained with {name} = {then!r}, now {environment.get(name)!r}, which "
                "rounds otherwise; launch certify as the run was launched"
            )
    if accelerator.is_main_process:
        shutil.rmtree(again, ignore_errors=True)
    accelerator.wait_for_everyone()
    fields = {
        **manifest["config"],
        "data": place,
        "output": again,
        "branch_from": directory / f"step_{start}" if start else None,
        "save_every": end,
        "validate_every": end + 1,
        "tracker": None,
    }
    try:
        pretrain.run(pretrain.PretrainConfig(**fields), stop_after=end)
        if accelerator.is_main_process:
            differ = []
            for part in ("weights", "optimizer"):
                old, new = (tensor_lines(folder, part) for folder in (wanted, again / wanted.name))
                differ += [f"{part} {name}" for name in sorted(old | new) if old.get(name) != new.get(name)]
            reached = load_state(again / wanted.name)
            differ += [
                f"{STATE_FILE} {key}"
                for key in state
                if key not in ("seconds", "joules") and state[key] != reached.get(key)
            ]
            if differ:
                raise UserError(
                    f"{directory}: trained again from step {start}, step {end} differs in {len(differ)} places (first: "
                    f"{differ[0]}); it was made by {manifest['code_version']}, this is {code_version()}; take the same "
                    "code and kind of machine, or else one of the two checkpoints was changed"
                )
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(again, ignore_errors=True)
    return {"from": start, "to": end}


# ---- what is shown ----------------------------------------------------------------------------------------------------


def table(certificate: Mapping[str, Any]) -> str:
    """The certificate in a few lines: what is proved, of what, and how it ended."""
    steps, sources, tensors = certificate["steps"], certificate["sources"], certificate["tensors"]
    names = ("source", "sequences", "samples", "epochs", "lost", "repeated")
    cells = [names, *((name, *(f"{counts[key]:,}" for key in names[1:])) for name, counts in sources.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    width = max(map(len, tensors))
    orders = [f"from step {order['first_step']:,}: {order['because']}" for order in certificate["orders"]]
    replayed = certificate["replayed"]
    again = f"steps {replayed['from']:,} to {replayed['to']:,} again: every byte the same" if replayed else "nothing"
    parts = {
        "steps": [f"{steps['first']:,} to {steps['done']:,} of {steps['planned']:,}"],
        "samples": [f"{certificate['samples']:,} ({certificate['tokens']:,} tokens)"],
        "order": orders,
        "rows read": [
            f"as computed, by {len(certificate['rows_sha256'])} checkpoints and {certificate['logged']:,} logged rows",
            *(f"{'step_' + step:{width}}  {link}" for step, link in certificate["rows_sha256"].items()),
        ],
        "epochs": aligned,
        **{
            part: [f"{name:{width}}  {digests[part]}" for name, digests in tensors.items() if part in digests]
            for part in ("weights", "optimizer")
        },
        "randomness": [certificate["random_state"]],
        "replayed": [again],
    }
    return "\n".join(f"{'' if n else name:12}{line}" for name, lines in parts.items() for n, line in enumerate(lines))


if __name__ == "__main__":
    run_cli(run, CertifyConfig)
