"""Where a run begins: at its start, at its newest whole checkpoint, at another run's, or nowhere, if it is finished.

`run.json` in the run's directory says what the run is: the options that decide its weights, the digests of the data and
of the weights that it starts from, the environment, and what was changed on the way. One process reads and decides; all
begin where it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septet.data.errors import UserError
from septet.data.manifest import (
    FILE_NAME,
    fingerprint,
    held,
    identity,
    plain,
    problems,
    read_json,
    write_json,
    write_manifest,
)
from septet.modeling.steps import Steps

if TYPE_CHECKING:
    from septet.modeling.pretrain import PretrainConfig

RUN_FILE = "run.json"
# What may differ when a run goes on: none of it changes the weights.
_FREE = (
    "save_every", "keep", "keep_every", "keep_best", "on_save_error", "validate_every", "validation_sequences",
    "log_every", "tracker", "activation_checkpointing", "allow_changes",
)  # fmt: skip


@contextmanager
def alone_at(output: Path) -> Iterator[None]:
    """Holds a lock beside the output, in the main process: two runs would write over each other.

    Raises:
        UserError: another process holds it.
    """
    if int(os.environ.get("RANK", "0")):
        yield
        return
    place = output.absolute().with_name(f".{output.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    with held(place, f"{output}: another process is at work there; wait for it or stop it"):
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def is_finished(config: PretrainConfig) -> bool:
    """Whether `output` holds this run, finished; with --resume that is said and fine, without it refused."""
    output = Path(config.output)
    if (output / FILE_NAME).is_file():
        if not config.resume:
            raise UserError(
                f"{output}: holds a finished run; choose another --output, or pass --resume to leave it as it is"
            )
        changed = changes(config, read_json(output / RUN_FILE))
        if changed:
            raise UserError(
                f"{output}: is finished, and {', '.join(changed)} cannot change any more; go on in another --output, with "
                f"--branch-from one of its checkpoints"
            )
        print(f"pretrain: {output} is finished", flush=True)
        return True
    if output.exists() and any(output.iterdir()) and not config.resume:
        raise UserError(
            f"{output}: holds a run or other files; choose another --output, or pass --resume to go on with it"
        )
    return False


def described(config: PretrainConfig) -> dict[str, Any]:
    """The options that decide the weights."""
    return {key: value for key, value in identity(config).items() if key not in _FREE}


def changes(config: PretrainConfig, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs from the run's start, as name -> (then, now), all of it allowed by --allow-changes.

    Raises:
        UserError: the first option, or the data, that differ without leave; or an option that there is not.
    """
    now, then = described(config), before["config"]
    unknown = [name for name in config.allow_changes if name not in now]
    if unknown:
        raise UserError(
            f"--allow-changes {unknown[0]}: is no option that a run is held to; those are {', '.join(sorted(now))}"
        )
    found = {key: (then.get(key), now.get(key)) for key in sorted(now) if now.get(key) != then.get(key)}
    found.pop("data", None)  # the same set may lie elsewhere
    digest = fingerprint(config.data)
    if digest != before["data_sha256"]:
        found["data"] = (before["data_sha256"], digest)
    for key, (old, new) in found.items():
        if key in config.allow_changes:
            continue
        if key == "data":
            raise UserError(
                f"{config.data}: has changed since {config.output} was started (sha256 {old[:12]} then, {new[:12]} now); "
                "give the old data, choose another --output, or pass --allow-changes data"
            )
        raise UserError(
            f"{config.output}: was started with {key} = {old!r}, now {new!r}; go on with the old value, choose another "
            f"--output, or pass --allow-changes {key}"
        )
    return found


@dataclass(frozen=True)
class Start:
    """Where a run begins in this process."""

    step: int = 0
    checkpoint: Path | None = None
    is_resumed: bool = False
    """whether the checkpoint is the run's own"""


def agreed_start(config: PretrainConfig, environment: dict[str, Any], steps: Steps, accelerator: Any) -> Start | None:
    """Where all processes begin, as the main one finds it; None if the run is finished.

    Raises:
        UserError: what `is_finished` and `start_run` raise, in every process; or this one does not see the run.
    """
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = None if is_finished(config) else start_run(config, environment, steps)
        except UserError as error:
            told[1] = str(error)
    start, problem = broadcast_object_list(told)
    if problem:
        raise UserError(problem)
    if not (Path(config.output) / RUN_FILE).is_file():
        raise UserError(
            f"{config.output}: this process does not see what process 0 wrote there; all machines need one file system"
        )
    return start


def start_run(config: PretrainConfig, environment: dict[str, Any], steps: Steps) -> Start:
    """Writes down what the run is, or checks that it is the same run; returns where to go on.

    Raises:
        UserError: --resume with other options or data than the run was started with and without leave; a --branch-from
            that is no whole checkpoint, or of another model; an --init-from that has changed before the first save; a
            checkpoint that these steps cannot go on from; or all checkpoints are damaged.
    """
    from septet.modeling import checkpoint

    output, origin = Path(config.output), config.init_from or config.branch_from
    if config.init_from is not None and config.branch_from is not None:
        raise UserError("--init-from and --branch-from: a branch has its weights from the checkpoint; give one of them")
    if not (output / RUN_FILE).is_file():
        start = Start() if config.branch_from is None else branch(config)
        check_fits(start, steps)
        output.mkdir(parents=True, exist_ok=True)
        run_file = {
            "config": described(config),
            "data_sha256": fingerprint(config.data),
            "environment": environment,
            "first_step": start.step,
            "changes": [],
        }
        if origin is not None:
            run_file["origin_sha256"] = fingerprint(origin)
        if start.checkpoint is not None:
            run_file["first_rows_sha256"] = checkpoint.load_state(start.checkpoint)["rows_sha256"]
        write_json(output / RUN_FILE, run_file)
        return start
    before = read_json(output / RUN_FILE)
    changed = changes(config, before)
    newest = checkpoint.newest_whole(output)
    if newest is None and origin is not None and fingerprint(origin) != before["origin_sha256"]:
        raise UserError(
            f"{origin}: has changed since {output} was started from it, and no checkpoint was saved yet; give it as it was, "
            "or choose another --output"
        )
    start = Start(*newest, True) if newest else Start() if config.branch_from is None else branch(config)
    check_fits(start, steps)
    checkpoint.clear_way(output, start.step)
    if environment != before["environment"]:
        pairs = {k: (before["environment"].get(k), v) for k, v in environment.items()}
        pairs = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
        print(f"pretrain: the environment differs from the start ({pairs}): same samples, weights equal only nearly")
    # A change from a step whose checkpoint was lost counts from the one that is gone back to.
    earlier = [{**change, "step": min(change["step"], start.step)} for change in before["changes"]]
    if changed:
        print(f"pretrain: goes on with changes from step {start.step}: {changed}", flush=True)
        earlier.append({"step": start.step, "changes": plain(changed)})
    if earlier != before["changes"]:
        now = {"config": described(config), "data_sha256": fingerprint(config.data), "changes": earlier}
        write_json(output / RUN_FILE, {**before, **now})
    return start


def check_fits(start: Start, steps: Steps) -> None:
    """Raises a `UserError` where a run of these steps cannot go on from a checkpoint."""
    from septet.modeling.checkpoint import load_state

    if start.checkpoint is None:
        return
    if start.step > steps.total or (start.step == steps.total and not start.is_resumed):
        raise UserError(
            f"the run is to have {steps.total:,} steps, and {start.checkpoint} is at step {start.step:,}; give more --steps "
            "or --tokens: they count from the start of the run that the checkpoint belongs to"
        )
    read = load_state(start.checkpoint)["samples"]
    if read != steps.samples_before(start.step):
        raise UserError(
            f"{start.checkpoint}: has read {read:,} sequences, and these options make it "
            f"{steps.samples_before(start.step):,}; a batch changes from a step on by --batch-schedule"
        )


def branch(config: PretrainConfig) -> Start:
    """The checkpoint of --branch-from.

    Raises:
        UserError: it is no whole checkpoint of a run, or not of this --preset's model and --objective.
    """
    from septet.modeling.checkpoint import STAGE

    path = Path(config.branch_from)
    if not (path / FILE_NAME).is_file() or read_json(path / FILE_NAME)["stage"] != STAGE:
        raise UserError(f"--branch-from {path}: is no checkpoint of a run; give its step_<n>/ folder")
    damage = problems(path)
    if damage:
        raise UserError(f"--branch-from {path}: is damaged ({damage[0]}); give an older checkpoint")
    manifest = read_json(path / FILE_NAME)
    for key in ("preset", "objective", "optimizer"):
        if manifest["config"][key] != getattr(config, key):
            raise UserError(
                f"--branch-from {path}: has {key} {manifest['config'][key]}, now {getattr(config, key)}; give the same"
            )
    return Start(manifest["counts"]["step"], path)


def finish_run(output: Path, config: PretrainConfig, counts: dict[str, Any]) -> None:
    """The run's own manifest, last: it lists `final/` and the curves, not the checkpoints (they have their own)."""
    listed = [*(output / "final").rglob("*"), *output.glob("*.jsonl"), *output.glob("*.png"), output / RUN_FILE]
    inputs = {"data": {"path": config.data, "sha256": fingerprint(config.data)}}
    if origin := config.init_from or config.branch_from:
        inputs["origin"] = {"path": origin, "sha256": read_json(output / RUN_FILE)["origin_sha256"]}
    write_manifest(output, "pretrain", config, inputs, counts, counts["training_seconds"], listed)
