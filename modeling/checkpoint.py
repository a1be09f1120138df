"""Checkpoints of a pre-training run: ordinary Hugging Face folders that can also be gone on from.

`step_<n>/` holds the model with its code and tokenizer, the optimizer's state as safetensors, the training state as
JSON, and the manifest, written last. There is no random state to keep: the batch, the masks and dropout of a step are
functions of (seed, step, micro-batch).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from septet.data.errors import UserError
from septet.data.manifest import FILE_NAME, problems, read_json, replace_directory, write_json, write_manifest

STAGE = "pretrain-step"


def save_model(model: Any, tokenizer: Any, directory: Path, **save_options: Any) -> None:
    """Weights (safetensors), configuration, code and tokenizer: a folder that every Auto class loads."""
    from septet.modeling import register

    register()
    model.save_pretrained(directory, **save_options)
    if not (Path(directory) / "modeling_septet.py").exists():  # transformers copies the code of the class it saves
        raise RuntimeError(f"{directory}: the model was saved without its code")
    tokenizer.save_pretrained(directory)


def save_checkpoint(
    run: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    config: Any,
) -> Path:
    """Writes `step_<n>` aside, syncs it, renames it; the manifest is the last file written.

    Raises:
        UserError: it cannot be written, for example on a full disk; earlier checkpoints are untouched.
    """
    from safetensors import SafetensorError

    started = time.time()
    aside, place = run / f".step_{step}.tmp", run / f"step_{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_model(model, tokenizer, aside)
        _save_optimizer(optimizer, aside)
        write_json(aside / "training_state.json", {"step": step, **state})
        write_manifest(aside, STAGE, config, {}, {"step": step}, time.time() - started)
        replace_directory(aside, place)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{place}: cannot be saved ({error}); free space, or give another disk; earlier checkpoints are untouched, and "
            "the same command with --resume goes on from the newest"
        ) from error
    return place


def _save_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, directory / "optimizer.safetensors", {"param_groups": json.dumps(state["param_groups"])})


def load_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Restores what `save_checkpoint` wrote into an optimizer over the same parameters."""
    from safetensors import safe_open

    state: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(directory / "optimizer.safetensors", "pt") as file:
        groups = json.loads(file.metadata()["param_groups"])
        for key in file.keys():  # noqa: SIM118 (not a dict)
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = file.get_tensor(key)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, directory) of the run's finished checkpoints, oldest first."""
    found = [
        (int(p.name[5:]), p) for p in Path(run).glob("step_*") if p.name[5:].isdigit() and (p / FILE_NAME).is_file()
    ]
    return sorted(found)


def newest_whole(run: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose files are as its manifest says; a damaged one is named and passed over."""
    for step, path in reversed(checkpoints(run)):
        damage = problems(path)
        if not damage:
            return step, path
        print(f"pretrain: {path} is damaged ({damage[0]}); going back to the one before", file=sys.stderr, flush=True)
    return None


def rotate(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for _, path in checkpoints(run)[:-keep]:
        doomed = path.with_name(f".{path.name}.old")
        os.rename(path, doomed)  # at once, so that a kill leaves no half-removed checkpoint behind
        shutil.rmtree(doomed, ignore_errors=True)


def load_state(path: Path) -> dict[str, Any]:
    """The training state of a checkpoint."""
    return read_json(path / "training_state.json")


def require_model_folder(path: Path) -> Path:
    """A folder that holds a loadable Septet checkpoint.

    Raises:
        UserError: no such folder, no config, no code beside the weights, or weights that are not safetensors.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: is not a model folder (no config.json); give a run's `final` folder or a checkpoint")
    config = read_json(path / "config.json")
    if config.get("model_type") == "septet":
        for name in ("configuration_septet.py", "modeling_septet.py"):
            if not (path / name).is_file():
                raise UserError(
                    f"{path}: {name} is missing; a Septet folder carries its code; copy it from a whole one"
                )
    if not list(path.glob("*.safetensors")):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in path.glob(pattern)]
        what = f"has {pickles[0]}, a pickle, which can run code when it is read" if pickles else "has no weights"
        raise UserError(
            f"{path}: {what}; only safetensors are loaded; save it with save_pretrained in a place you trust"
        )
    return path


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors header says of one tensor; its values stay on disk until they are asked for."""

    file: Path
    name: str
    dtype: str
    """as safetensors spells it: F32, F16, BF16"""
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """The values, in the stored type."""
        from safetensors import safe_open

        with safe_open(self.file, "pt") as file:
            return file.get_tensor(self.name)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder by name, from the headers of its files alone.

    Raises:
        UserError: a shard is missing or damaged, or lacks a tensor that the index puts there.
    """
    from safetensors import safe_open

    way_out = "download or save it again"
    index = folder / "model.safetensors.index.json"
    listed = read_json(index)["weight_map"] if index.is_file() else {}
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(listed.values())) or ["model.safetensors"]:
        path = folder / shard
        if not path.is_file():
            held = next((f", which holds {name}" for name, place in listed.items() if place == shard), "")
            raise UserError(f"{path}: is missing{held}; {way_out}")
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    entry = file.get_slice(name)
                    found[name] = StoredTensor(path, name, entry.get_dtype(), tuple(entry.get_shape()))
        except Exception as error:  # safetensors raises its own type
            raise UserError(f"{path}: is damaged ({' '.join(str(error).split())}); {way_out}") from error
    for name, shard in listed.items():
        if name not in found:
            raise UserError(f"{folder / shard}: lacks {name}, which {index.name} puts there; {way_out}")
    return found


def check_weights(folder: Path, model_class: Any, config: Any) -> dict[str, StoredTensor]:
    """Compares the stored names, shapes and types with the model's, built without memory; returns what is stored.

    Raises:
        UserError: as `stored_tensors`, or the first tensor that is missing, of another shape or type, or too many.
    """
    found = stored_tensors(folder)
    with torch.device("meta"):
        wanted = model_class(config).state_dict()
    tied = (model_class._tied_weights_keys or {}) if config.tie_word_embeddings else {}
    way_out = "give the config.json that belongs to these weights, or save both again"
    for name, tensor in wanted.items():
        if name not in found:
            if tied.get(name) in found:
                continue
            raise UserError(f"{folder}: its weights lack {name}; {way_out}")
        stored = found[name]
        if stored.shape != tuple(tensor.shape):
            raise UserError(
                f"{folder}: {name} is of shape {list(stored.shape)}, and config.json makes it {list(tensor.shape)}; "
                f"{way_out}"
            )
        if stored.dtype not in ("F32", "F16", "BF16"):
            raise UserError(
                f"{folder}: {name} is stored as {stored.dtype}; weights are F32, F16 or BF16; save it in one of them"
            )
    # Older Llama checkpoints also hold the rotary frequencies, which follow from the configuration.
    known = re.compile("|".join([r"rotary_emb\.inv_freq$", *(model_class._keys_to_ignore_on_load_unexpected or [])]))
    for name in sorted(found.keys() - wanted.keys()):
        if not known.search(name):
            raise UserError(f"{folder}: holds {name}, which {model_class.__name__} does not have; {way_out}")
    return found
