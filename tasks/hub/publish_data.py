"""Upload a corpus or a packed set as a data set of the Hub, after looking at every byte of it.

    septet publish-data build/packed --repo-id owner/name
    septet publish-data build/packed --repo-id owner/name --private --no-dry-run

What goes up is what training reads: the documents or sequences, the tokenizer of a packed set, the data card and the
manifest, whose paths are cut to their last part. Rejected documents and the page that shows some stay here: they hold what
was dropped for a reason. A set that comes down again has the same fingerprint, so that a run goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, read_json, sha256_of_file
from septet.tasks.hub.upload import UploadConfig, check_target, tag, upload

SHARED = {"corpus": ("train", "validation"), "pack": ("train", "validation", "tokenizer")}


@dataclass(frozen=True)
class PublishDataConfig:
    data: Annotated[Path, tyro.conf.Positional]
    """what `septet corpus` or `septet pack` wrote"""
    upload: Annotated[UploadConfig, tyro.conf.arg(name="")] = field(default_factory=UploadConfig)


def run(config: PublishDataConfig) -> None:
    """Checks the set, and uploads it if asked.

    Raises:
        UserError: no such stage, a file that is not what the stage wrote, an invalid name, or a Hub that refuses.
    """
    check_target(config.upload)
    folder = Path(config.data)
    failed = [result for result in check_data(folder) if not result["ok"]]
    if failed:
        raise UserError(
            f"{folder}: cannot be published ({failed[0]['check']}: {failed[0]['detail']}); make it again with --overwrite"
        )
    files = files_of(folder)
    unstated = [line for line in (folder / "README.md").read_text("utf-8").split("\n") if "| not stated |" in line]
    if unstated:
        print(
            f"publish-data: the licence of {len(unstated)} rows of the card is not stated; "
            "`septet corpus --licenses SOURCE LICENCE` states it",
            flush=True,
        )
    print(f"publish-data: {folder} is sound, {len(files)} files", flush=True)
    if config.upload.repo_id:
        tag(config.upload, upload(config.upload, files, folder.name, partial(check_data), "dataset"), "dataset")


def files_of(folder: Path) -> dict[str, Path | bytes]:
    """What goes to the Hub, by its path there."""
    manifest = read_json(folder / FILE_NAME)
    text = json.dumps(portable(manifest), indent=2, ensure_ascii=False) + "\n"
    return {**{name: folder / name for name in shared_files(manifest)}, FILE_NAME: text.encode()}


def shared_files(manifest: dict[str, Any]) -> list[str]:
    """Those that go to the Hub, but for the manifest itself."""
    folders = SHARED[manifest["stage"]]
    return [name for name in manifest["files"] if name == "README.md" or name.split("/")[0] in folders]


def check_data(folder: Path) -> list[dict[str, Any]]:
    """One dict a check: "check", "ok", "detail".

    Raises:
        UserError: no corpus and no packed set is there.
    """
    manifest = read_json(folder / FILE_NAME) if (folder / FILE_NAME).is_file() else {}
    if manifest.get("stage") not in SHARED:
        raise UserError(f"{folder}: holds neither a corpus nor a packed set; give what one of those stages wrote")
    results = []
    for check, problems in (("files", changed(folder, manifest)), ("rows", unreadable(folder, manifest))):
        found = next(problems, "")
        results.append({"check": check, "ok": not found, "detail": found})
        if found:
            break  # what is not the stage's own is not read
    return results


def changed(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What is not as the stage left it."""
    for name in ("README.md", *(name for name in shared_files(manifest) if name != "README.md")):
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            yield f"{name} is a link or lies elsewhere; a data set holds plain files"
        elif not path.is_file():
            yield f"{name} is missing"
        elif sha256_of_file(path) != manifest["files"].get(name, {}).get("sha256"):
            yield f"{name} has changed since it was made"


def unreadable(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Splits of which `datasets` does not read a first row, by the card's own configuration."""
    import datasets

    for split in ("train", "validation"):
        if any(name.startswith(f"{split}/") for name in manifest["files"]):
            try:
                next(iter(datasets.load_dataset(str(folder), split=split, streaming=True)))
            except Exception as error:  # whatever a reader says to what it cannot read
                yield f"datasets.load_dataset reads no row of {split} ({error})"


def portable(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with paths cut to their last part: where things lay on this machine is nobody's business."""
    paths = {entry["path"] for entry in manifest["inputs"].values()}

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cut(item) for item in value]
        return Path(value).name if value in paths and not value.startswith("hub:") else value

    return {**manifest, "config": cut(manifest["config"]), "inputs": cut(manifest["inputs"])}


if __name__ == "__main__":
    run_cli(run, PublishDataConfig)
