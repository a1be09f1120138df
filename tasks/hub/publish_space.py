"""Upload a Space: the page of `septet serve` for models that are on the Hub.

    septet publish-space classification=owner/topics@v1 ner=owner/names@v1 --repo-id owner/demo --no-dry-run

The Space holds `app.py` (a copy of `septet.tasks.hub.page`), `models.json`, the versions of the libraries that it was made
with, and a card. It runs the code of the models, so each is named with the revision that was read.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli, suggestion
from septet.tasks.hub.upload import UploadConfig, check_target, tag, upload

TASKS = ("translation", "classification", "qa", "summarization", "ner")
LIBRARIES = ("torch", "transformers", "captum")  # Gradio's version stands in the card


@dataclass(frozen=True)
class PublishSpaceConfig:
    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """TASK=owner/name@revision of each model; the task is translation, classification, qa, summarization or ner"""
    title: str = "Septet"
    """of the Space"""
    upload: Annotated[UploadConfig, tyro.conf.arg(name="")] = field(default_factory=UploadConfig)


def run(config: PublishSpaceConfig) -> None:
    """Uploads the Space if asked; otherwise says what it would hold.

    Raises:
        UserError: a model that is not named as it must be, no name for the Space, or a Hub that refuses.
    """
    check_target(config.upload)
    files = files_of(config)
    if not config.upload.repo_id:
        raise UserError("--repo-id: is missing; a Space needs a name, owner/name")
    commit = upload(config.upload, files, config.title, lambda folder: same(files, folder), "space")
    tag(config.upload, commit, "space")


def files_of(config: PublishSpaceConfig) -> dict[str, Path | bytes]:
    """What goes up, by its path there."""
    missing = [name for name in ("gradio", *LIBRARIES) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"publish-space: {', '.join(missing)} is not installed; pip install 'septet[page]'")
    listed = [named(model) for model in config.models]
    if not listed:
        raise UserError("publish-space: no model; name one or more, as in ner=owner/name@v1")
    head = {
        "title": config.title,
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "app_file": "app.py",
        "license": "apache-2.0",
        "models": [entry["model"] for entry in listed],
    }
    card = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())  # JSON is YAML
    text = (
        "Type a text and see what the models answer, and what spoke for it. They are right or wrong as their cards say."
    )
    requirements = "".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in LIBRARIES)
    return {
        "README.md": f"---\n{card}\n---\n\n{text}\n".encode(),
        "app.py": Path(__file__).with_name("page.py"),
        "models.json": (json.dumps(listed, indent=2) + "\n").encode(),
        "requirements.txt": requirements.encode(),
    }


def named(model: str) -> dict[str, Any]:
    """{"task", "model", "revision"} of TASK=owner/name@revision."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    task, _, rest = model.partition("=")
    name, _, revision = rest.partition("@")
    if task not in TASKS:
        raise UserError(f"{model!r}: its task {task!r} is unknown; {suggestion(task, TASKS)}")
    if not revision:
        raise UserError(
            f"{model!r}: has no @revision; the Space runs that code, so name the tag or commit that was read"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{model!r}: {name!r} is no repository; write TASK=owner/name@revision") from error
    return {"task": task, "model": name, "revision": revision}


def same(files: dict[str, Path | bytes], folder: Path) -> list[dict[str, Any]]:
    """Whether what came back is what was sent."""
    wanted = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in files.items()}
    differ = [name for name, content in wanted.items() if (folder / name).read_bytes() != content]
    return [{"check": "files", "ok": not differ, "detail": ", ".join(differ)}]


if __name__ == "__main__":
    run_cli(run, PublishSpaceConfig)
