"""A page on this machine to try fine-tuned models: type a text, see what the model answers, and what spoke for it.

    septet serve runs/classification/final runs/ner/final

It listens on loopback alone and loads the models with the code of this package, not with the folders'.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import read_json

Task = Literal["translation", "classification", "qa", "summarization", "ner"]


@dataclass(frozen=True)
class ServeConfig:
    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """fine-tuned checkpoint folders, or what `septet publish` built; each gets a tab"""
    task: Task | None = None
    """of a folder that does not say what it was fine-tuned for"""
    port: int = 7860
    """on 127.0.0.1; 0: any free one"""


def run(config: ServeConfig) -> None:
    """Serves until it is stopped with Ctrl-C."""
    server = start(config)
    print(f"serve: {server.local_url} (stop with Ctrl-C)", flush=True)
    server.block_thread()


def start(config: ServeConfig) -> Any:
    """The Gradio page, listening.

    Raises:
        UserError: a folder that is no checkpoint, a task that is not known, a port that is taken, no Gradio.
    """
    from septet.modeling.checkpoint import require_model_folder

    if not config.models:
        raise UserError("serve: no model; give one folder or more, such as runs/classification/final")
    folders = [require_model_folder(model) for model in config.models]
    tasks = [task_of(folder, config.task) for folder in folders]
    if importlib.util.find_spec("gradio") is None:
        raise UserError("serve: Gradio is not installed; pip install 'septet[page]'")

    from septet.modeling import register
    from septet.tasks.hub import page

    register()
    answerers = [page.Answerer(task, folder) for task, folder in zip(tasks, folders, strict=True)]
    shown = page.build(answerers)
    try:
        port = config.port or None
        page.launch(shown, server_name="127.0.0.1", server_port=port, share=False, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        raise UserError(f"--port {config.port}: is not free; give another, or 0 for any ({error})") from error
    return shown


def task_of(folder: Path, given: str | None) -> str:
    """What a folder was fine-tuned for: by its run, by its card's facts, or as given."""
    from septet.tasks.harness.finetune import read_run

    facts = folder / "evidence" / "card.json"
    if not list(folder.glob("model*.safetensors")):
        raise UserError(f"{folder}: holds no whole model; the page cannot show an adapter: give the run's final/")
    run = read_json(facts).get("run", {}) if facts.is_file() else read_run(folder)
    task = given or run.get("config", {}).get("task")
    known = Task.__args__
    if task not in known:
        said = "what it was fine-tuned for is not written beside it" if task is None else f"was fine-tuned for {task!r}"
        raise UserError(f"{folder}: {said}; the page shows {', '.join(known)}: give --task")
    return task


if __name__ == "__main__":
    run_cli(run, ServeConfig)
