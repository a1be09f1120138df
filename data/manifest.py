"""A stage reads directories and writes one: aside, renamed when whole, with `manifest.json` written last.

The presence of the manifest means that the stage is done. It holds what is needed to repeat the stage: the resolved
configuration, the code version, fingerprints of the inputs, counts and seconds.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from septet.data.errors import UserError

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a directory.

    A directory that a stage wrote is known by the digests in its manifest, whenever and however long it was made, as long as
    it holds those files, of those sizes, and, but for a run's, no others.

    Raises:
        UserError: the path does not exist or cannot be read.
    """
    path = Path(path)
    try:
        if path.is_file():
            return sha256_of_file(path)
        if (listed := _listed(path)) is not None:
            return _of_files(listed)
        if path.is_dir():
            files = [p for p in path.rglob("*") if p.is_file()]
            return _of_files({str(p.relative_to(path)): sha256_of_file(p) for p in files})
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    raise UserError(f"{path}: no such file or directory; check the path, or run the stage that makes it")


def _listed(directory: Path) -> dict[str, str] | None:
    """Name and digest of each file of a directory by its manifest; None if it has none of ours, or holds something else."""
    if not (directory / FILE_NAME).is_file():
        return None
    with suppress(UserError):
        manifest = read_json(directory / FILE_NAME)
        if isinstance(manifest, dict) and "stage" in manifest and isinstance(manifest.get("files"), dict):
            listed = manifest["files"]
            there = {str(p.relative_to(directory)): p.stat().st_size for p in directory.rglob("*") if p.is_file()}
            more = [
                name
                for name in there
                if name not in listed and name != FILE_NAME and not Path(name).name.startswith(".")
            ]
            if all(there.get(name) == file["bytes"] for name, file in listed.items()) and (
                not more or manifest["stage"] in ("pretrain", "finetune")  # runs list what is to be passed on
            ):
                return {name: file["sha256"] for name, file in listed.items()}
    return None


def _of_files(digests: Mapping[str, str]) -> str:
    listed = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


@cache
def code_version() -> str:
    """The package's version, with the git commit (and `+changes`) where it runs from a checkout."""
    version = metadata.version("septet")
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return version
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
        commit = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} ({commit})"


def plain(value: Any) -> Any:
    """A dataclass, path or mapping as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


# Where a stage writes, how it is started over, with how many processes, and what would be refused: none of it changes
# what comes out.
_NOT_IDENTITY = ("output", "overwrite", "resume", "workers", "max_epochs")


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides what comes out."""
    return {key: value for key, value in plain(config).items() if key not in _NOT_IDENTITY}


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content; a `UserError` names the file when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that makes it, or check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable JSON ({error}); make it again") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON beside its place and renames it there, so that no reader ever sees half a file."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(aside, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)


def read_manifest(directory: str | os.PathLike[str], stage: str) -> dict[str, Any]:
    """The manifest of a finished stage.

    Raises:
        UserError: there is none (the stage did not finish or never ran), or it belongs to another stage.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise UserError(f"{directory}: holds no finished `{stage}` stage (no {FILE_NAME}); run `septet {stage}` first")
    manifest = read_json(path)
    made_by = manifest.get("stage") if isinstance(manifest, dict) else None
    if made_by != stage:
        raise UserError(f"{directory}: was made by `{made_by}`, not by `{stage}`; give the other directory")
    return manifest


def finished(
    output: Path, stage: str, config: Any, inputs: Mapping[str, Any], overwrite: bool = False
) -> dict[str, Any] | None:
    """The manifest if `output` already holds exactly this stage; None if the stage is to be run.

    Args:
        inputs: name -> path of a file or directory that the stage reads.

    Raises:
        UserError: `output` holds something else; the message names the first difference.
    """
    output = Path(output)
    if overwrite or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    way_out = "choose another --output, or pass --overwrite to make it again"
    if not (output / FILE_NAME).is_file():
        raise UserError(f"{output}: exists but was not written by `septet {stage}` (no {FILE_NAME}); {way_out}")
    manifest = read_json(output / FILE_NAME)
    if manifest.get("stage") != stage:
        raise UserError(f"{output}: holds the stage `{manifest.get('stage')}`, not `{stage}`; {way_out}")
    now, before = identity(config), manifest.get("config", {})
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            raise UserError(f"{output}: was made with {key} = {before.get(key)!r}, now {now.get(key)!r}; {way_out}")
    recorded = manifest.get("inputs", {})
    if left_out := sorted(recorded.keys() - inputs.keys()):
        raise UserError(f"{output}: was made with the input {left_out[0]} too; {way_out}")
    for name, path in inputs.items():
        was, digest = manifest.get("inputs", {}).get(name, {}).get("sha256"), fingerprint(path)
        if digest != was:
            raise UserError(
                f"{output}: its input {name} ({path}) has changed: sha256 {str(was)[:12]} then, {digest[:12]} now; {way_out}"
            )
    print(f"{stage}: {output} is up to date", flush=True)
    return manifest


@dataclasses.dataclass
class Writing:
    """An output directory while it is being written: put files below `path` and numbers into `counts`."""

    path: Path
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)


def digests_of(inputs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Path and fingerprint of each input, as a manifest lists them."""
    return {name: {"path": str(path), "sha256": fingerprint(path)} for name, path in inputs.items()}


@contextmanager
def held(lock_file: Path, busy: str) -> Iterator[None]:
    """Holds a lock while the block runs; a process that is killed lets it go.

    Raises:
        UserError: another process holds it; `busy` is the message.
    """
    with open(lock_file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


@contextmanager
def work_folder(
    output: Path, stage: str, config: Any, digests: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Path, float]]:
    """The folder beside `output` in which a long stage keeps what it has finished, and the seconds spent there before.

    It is empty at first, and again when the configuration, an input or the code has changed. It stays when the block
    ends, so that the same command goes on; a stage removes it (`remove_work`) when its output is whole.

    Raises:
        UserError: another process is at work there, the disk is full, or the place cannot be written.
    """
    output = Path(output).absolute()
    folder = output.with_name(f".{output.name}.work")
    same = {"stage": stage, "code_version": code_version(), "config": identity(config), "inputs": plain(digests)}
    started, before = time.time(), 0.0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        busy = f"{output}: another process is making it (in {folder}); one can at a time; wait for it or stop it"
        with held(folder / "lock", busy):
            if not (folder / "identity.json").is_file() or read_json(folder / "identity.json")["identity"] != same:
                (folder / "identity.json").unlink(missing_ok=True)  # first: what follows is half a folder
                for entry in folder.iterdir():
                    if entry.is_dir():
                        shutil.rmtree(entry)
                    elif entry.name != "lock":
                        entry.unlink()
                write_json(folder / "identity.json", {"identity": same, "seconds": 0.0})
            else:
                before = read_json(folder / "identity.json")["seconds"]
                print(f"{stage}: goes on with what is finished in {folder}", flush=True)
            try:
                yield folder, before
            finally:
                if (folder / "identity.json").is_file():
                    with suppress(OSError):
                        spent = before + time.time() - started
                        write_json(folder / "identity.json", {"identity": same, "seconds": spent})
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); free space or choose another --output "
            f"(what was finished is kept in {folder}: the same command goes on)"
        ) from error


def remove_work(folder: Path) -> None:
    """Removes a work folder, the file that says what it holds first: half of it must not be taken for the whole."""
    (folder / "identity.json").unlink()
    shutil.rmtree(folder)


@contextmanager
def writing(
    output: Path,
    stage: str,
    config: Any,
    inputs: Mapping[str, Any],
    digests: Mapping[str, Mapping[str, str]] | None = None,
    started: float | None = None,
) -> Iterator[Writing]:
    """Writes a stage's directory aside, the manifest last, and renames it into place when whole.

    An exception leaves whatever stood at `output` untouched and removes the half-written directory.

    Args:
        digests: what `digests_of` gives for `inputs`, where it is known already.
        started: when the stage began, in seconds since 1970; now, by default.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    output = Path(output)
    aside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    started = started or time.time()
    digests = digests or digests_of(inputs)
    try:
        _remove_leftovers(output)
        aside.mkdir(parents=True)
        state = Writing(aside)
        yield state
        write_manifest(aside, stage, config, digests, state.counts, time.time() - started)
        replace_directory(aside, output)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); free space or choose another --output "
            "(nothing that was finished has been touched)"
        ) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_manifest(
    directory: Path,
    stage: str,
    config: Any,
    inputs: Mapping[str, Any],
    counts: Mapping[str, Any],
    seconds: float,
    listed: Iterable[Path] | None = None,
) -> None:
    """Writes `manifest.json` into a directory whose other files are complete and synced to disk first.

    Args:
        listed: the files to list, where others below `directory` have manifests of their own; default: all of them.
    """
    files = {}
    for file in sorted(p for p in (directory.rglob("*") if listed is None else listed) if p.is_file()):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
        files[str(file.relative_to(directory))] = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    write_json(
        directory / FILE_NAME,
        {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "code_version": code_version(),
            "config": identity(config),
            "inputs": plain(inputs),
            "counts": plain(counts),
            "seconds": round(seconds, 3),
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "files": files,
        },
    )


def replace_directory(aside: Path, output: Path) -> None:
    """Renames `aside` to `output`; what stood there goes only after the new one is in place."""
    old = None
    if output.exists():
        old = output.with_name(f".{output.name}.{os.getpid()}.old")
        os.rename(output, old)
    os.rename(aside, output)
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


def _remove_leftovers(output: Path) -> None:
    """Removes half-written directories of runs that were killed."""
    for left in output.parent.glob(f".{output.name}.*.tmp"):
        if not _alive(left.name.rsplit(".", 2)[1]):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(process_id) != os.getpid()


def problems(directory: str | os.PathLike[str]) -> list[str]:
    """What differs between a finished directory and the files its manifest lists; empty when it is whole."""
    directory = Path(directory)
    found = []
    for name, expected in read_json(directory / FILE_NAME)["files"].items():
        file = directory / name
        if not file.is_file():
            found.append(f"{name}: is missing")
        elif file.stat().st_size != expected["bytes"]:
            found.append(f"{name}: has {file.stat().st_size:,} bytes, should have {expected['bytes']:,}")
        elif sha256_of_file(file) != expected["sha256"]:
            found.append(f"{name}: its content has changed (sha256 differs from the manifest)")
    return found
