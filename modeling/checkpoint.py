"""Checkpoints of a pre-training run: ordinary Hugging Face folders that can also be gone on from.

`step_<n>/` holds the whole model with its code and tokenizer, `optimizer/` with each process's part of the optimizer's
state (torch's distributed checkpoint, as safetensors: no pickle), the training state as JSON, and the manifest, written
last. There is no random state to keep: the batch, the masks and dropout of a step are functions of (seed, step,
micro-batch).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from septet.data.errors import UserError
from septet.data.manifest import FILE_NAME, problems, read_json, replace_directory, write_json, write_manifest

STAGE = "pretrain-step"
STATE_FILE = "training_state.json"
OPTIMIZER_FOLDER = "optimizer"
MAX_SHARD_BYTES = 5 * 10**9  # as the Hub advises


def save_model(model: Any, tokenizer: Any, directory: Path, **save_options: Any) -> None:
    """Weights (safetensors), configuration, code and tokenizer: a folder that every Auto class loads."""
    from septet.modeling import register

    register()
    model.save_pretrained(directory, **save_options)
    if not (Path(directory) / "modeling_septet.py").exists():  # transformers copies the code of the class it saves
        raise RuntimeError(f"{directory}: the model was saved without its code")
    tokenizer.save_pretrained(directory)


# ---- writing ----------------------------------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of a run, written by a thread of each process while training goes on.

    Args:
        run: the run's directory.
        config: the run's `PretrainConfig`: for the manifests, and for which checkpoints stay (see `rotate`).
    """

    def __init__(self, run: Path, tokenizer: Any, config: Any):
        import torch.distributed as dist

        self.run, self.tokenizer, self.config = Path(run), tokenizer, config
        self.many = dist.is_initialized() and dist.get_world_size() > 1
        self.is_main = not self.many or dist.get_rank() == 0
        # The threads talk among themselves, beside the training's own collectives.
        self.group = dist.new_group(backend="gloo") if self.many else None
        self.error: str | None = None
        self.stalled_seconds = 0.0
        """how long training stood still for checkpoints"""
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        model: Any,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        score: float | None,
        after: Callable[[], None] | None,
    ) -> None:
        """Copies the tensors and has `step_<step>` written; all processes call it together.

        Args:
            model: the Septet model; its parameters may be sharded.
            state: for `training_state.json`.
            score: held-out loss at this step, where one was measured.
            after: what the main process's thread does when the checkpoint is there.

        Raises:
            UserError: the save before this one failed; see `wait`.
        """
        self.wait()
        started = time.time()
        weights, moments = (
            {
                name: tensor.detach().to("cpu", copy=True)  # sharded as it is; of what all have, one copy
                for name, tensor in tensors.items()
                if self.is_main or hasattr(tensor, "to_local")
            }
            for tensors in (plain_names(model), optimizer_tensors(model, optimizer))
        )
        self._thread = threading.Thread(target=self._write, args=(step, model, weights, moments, state, score, after))
        self._thread.daemon = True  # with another process dead it would wait for ever
        self._thread.start()
        self.stalled_seconds += time.time() - started

    def wait(self) -> None:
        """Waits for the save that is under way.

        Raises:
            UserError: it failed, for example on a full disk; earlier checkpoints are untouched.
        """
        if self._thread is not None:
            started = time.time()
            self._thread.join()
            self._thread = None
            self.stalled_seconds += time.time() - started
        if self.error:
            message, self.error = self.error, None
            raise UserError(message)

    def _write(
        self,
        step: int,
        model: Any,
        weights: dict[str, torch.Tensor],
        moments: dict[str, torch.Tensor],
        state: dict[str, Any],
        score: float | None,
        after: Callable[[], None] | None,
    ) -> None:
        started = time.time()
        aside, place = self.run / f".step_{step}.tmp", self.run / f"step_{step}"
        try:
            self._together(lambda: self._begin(aside, model, step, state), main_only=True)
            if any(hasattr(tensor, "to_local") for tensor in weights.values()):
                self._together(lambda: write_sharded_weights(weights, aside, self.is_main, self.group))
            else:
                self._together(lambda: write_weights(weights, aside), main_only=True)
            self._together(lambda: _write_shards(moments, aside / OPTIMIZER_FOLDER, self.many, self.group))
            self._together(lambda: self._finish(aside, place, step, score, started), main_only=True)
        except Exception as error:
            if self.is_main:
                shutil.rmtree(aside, ignore_errors=True)
            self.error = (
                f"{place}: cannot be saved ({' '.join(str(error).split())}); free space, or give another disk; earlier "
                "checkpoints are untouched, and the same command with --resume goes on from the newest"
            )
            return
        if self.is_main and after is not None:
            try:
                after()
            except Exception as error:  # the checkpoint is there
                print(f"pretrain: the pictures could not be drawn ({error})", file=sys.stderr, flush=True)

    def _begin(self, aside: Path, model: Any, step: int, state: dict[str, Any]) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_description(model, self.tokenizer, aside)
        write_json(aside / STATE_FILE, {"step": step, **state})

    def _finish(self, aside: Path, place: Path, step: int, score: float | None, started: float) -> None:
        for file in aside.rglob("*.safetensors"):  # which safetensors writes for its owner alone
            shutil.copymode(aside / "config.json", file)
        write_manifest(aside, STAGE, self.config, {}, {"step": step, "loss": score}, time.time() - started)
        replace_directory(aside, place)
        rotate(self.run, self.config.keep, self.config.keep_every, self.config.keep_best)

    def _together(self, work: Any, main_only: bool = False) -> None:
        """Does a part of a save in every process, or in the main one; where it fails in one it fails in all."""
        problem = None
        try:
            if self.is_main or not main_only:
                work()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if self.many:
            import torch.distributed as dist

            found: list[str | None] = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(found, problem, group=self.group)
            problem = next((p for p in found if p), None)
        if problem:
            raise RuntimeError(problem)


def plain_names(model: Any) -> dict[str, torch.nn.Parameter]:
    """The model's parameters by the names they have without compilation and recomputation; a tied one comes once."""
    return {
        name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", ""): parameter
        for name, parameter in model.named_parameters()
    }


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<parameter>.<state>` -> tensor (the tensors themselves).

    Raises:
        RuntimeError: a parameter has no state though others have, as where FSDP2 has left weights gathered, which are
            other objects than the shards that the optimizer knows.
    """
    named = plain_names(model)
    lacking = [name for name, parameter in named.items() if not optimizer.state.get(parameter)]
    if lacking and optimizer.state:
        raise RuntimeError(f"{lacking[0]}: has no optimizer state, and other parameters have")
    return {
        f"{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def save_description(model: Any, tokenizer: Any, directory: Path) -> None:
    """What a model folder holds beside its weights: configuration, code, generation settings and tokenizer."""
    from transformers.dynamic_module_utils import custom_object_save

    from septet.modeling import register

    register()
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    custom_object_save(model, directory, config=model.config)
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_final(output: Path, last: Path) -> None:
    """`final/`: the last checkpoint without what only training needs."""
    aside = output / ".final.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for file in last.iterdir():
        if file.name not in (OPTIMIZER_FOLDER, STATE_FILE, FILE_NAME):
            shutil.copy2(file, aside / file.name)
    replace_directory(aside, output / "final")


def write_weights(weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Weights as safetensors that transformers loads."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(weights, directory, max_shard_size=MAX_SHARD_BYTES, metadata={"format": "pt"})


def write_sharded_weights(weights: dict[str, torch.Tensor], directory: Path, is_main: bool, group: Any) -> None:
    """The same of weights that are sharded among processes: each writes its own, and the main one puts the files
    together on the disk; no process ever holds the whole."""
    index: dict[str, int] = {}
    file, used = 0, MAX_SHARD_BYTES + 1
    for name, tensor in weights.items():
        size = tensor.numel() * tensor.element_size()
        file, used = (file + 1, 0) if used + size > MAX_SHARD_BYTES else (file, used)
        index[name], used = file, used + size
    _write_shards(weights, directory, True, group, index, consolidate=True)
    if is_main:
        shutil.rmtree(directory / "sharded")
        if file == 1:  # the name that everyone looks for
            os.rename(directory / "model-00001-of-00001.safetensors", directory / "model.safetensors")
            (directory / "model.safetensors.index.json").unlink()


def _write_shards(
    tensors: dict[str, torch.Tensor],
    directory: Path,
    many: bool,
    group: Any,
    index: dict[str, int] | None = None,
    consolidate: bool = False,
) -> None:
    import torch.distributed.checkpoint as distributed_checkpoint

    writer = distributed_checkpoint.HuggingFaceStorageWriter(
        str(directory), fqn_to_index_mapping=index, save_distributed=True, enable_consolidation=consolidate
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that one process is one process
        distributed_checkpoint.save(tensors, storage_writer=writer, process_group=group, no_dist=not many)


# ---- reading ----------------------------------------------------------------------------------------------------------


def load_tensors(tensors: dict[str, torch.Tensor], directory: Path, many: bool) -> None:
    """Fills tensors, sharded in any way, from the safetensors files of a folder; each process reads its part alone.

    Raises:
        UserError: a file lacks a tensor, or holds it in another shape.
    """
    import torch.distributed.checkpoint as distributed_checkpoint

    reader = distributed_checkpoint.HuggingFaceStorageReader(str(directory))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            distributed_checkpoint.load(
                {k: v.detach() for k, v in tensors.items()}, storage_reader=reader, no_dist=not many
            )
    except Exception as error:  # torch wraps what each process says
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}: does not belong to this model or optimizer ({reason}); give the run's own options, or start "
            "another run from its weights with --init-from"
        ) from error


def load_optimizer(model: Any, optimizer: torch.optim.Optimizer, directory: Path, many: bool) -> None:
    """Restores what `Checkpoints.save` wrote into an optimizer that has not stepped yet."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    get_optimizer_state_dict(model, optimizer)  # has the optimizer make its state, by a step of size 0
    load_tensors(optimizer_tensors(model, optimizer), directory / OPTIMIZER_FOLDER, many)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, directory) of the run's finished checkpoints, oldest first."""
    found = [
        (int(p.name[5:]), p) for p in Path(run).glob("step_*") if p.name[5:].isdigit() and (p / FILE_NAME).is_file()
    ]
    return sorted(found)


def newest_whole(run: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose files are as its manifest says; a damaged one is named and passed over.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = checkpoints(run)
    for step, path in reversed(found):
        damage = problems(path)
        if not damage:
            return step, path
        print(f"pretrain: {path} is damaged ({damage[0]}); going back to the one before", file=sys.stderr, flush=True)
    if found:
        raise UserError(f"{run}: all of its checkpoints are damaged; look at the disk, or choose another --output")
    return None


def rotate(run: Path, keep: int, keep_every: int = 0, keep_best: bool = False) -> None:
    """Removes all checkpoints but the newest `keep`, each `keep_every`-th step, and the best if it is to stay."""
    found = checkpoints(run)
    stay = {step for step, _ in found[-keep:]} | {step for step, _ in found if keep_every and step % keep_every == 0}
    if keep_best:
        losses = {step: read_json(path / FILE_NAME)["counts"]["loss"] for step, path in found}
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        stay |= {min(measured, key=measured.get)} if measured else set()
    for step, path in found:
        if step not in stay:
            doomed = path.with_name(f".{path.name}.old")
            os.rename(path, doomed)  # at once, so that a kill leaves no half-removed checkpoint behind
            shutil.rmtree(doomed, ignore_errors=True)


def clear_way(run: Path, step: int) -> None:
    """Removes what a killed process left half-written or half-removed, and puts checkpoints past a step, which are
    damaged, aside: they would count as the newest."""
    for pattern in (".step_*.tmp", ".step_*.old", ".first_weights", ".final.*"):
        for left in run.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
    for later, path in checkpoints(run):
        if later > step:
            os.replace(path, path.with_name(f"damaged_{path.name}.{os.getpid()}"))


def load_state(path: Path) -> dict[str, Any]:
    """The training state of a checkpoint."""
    return read_json(path / STATE_FILE)


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
    if listed and (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: has model.safetensors, which transformers reads, and {index.name} with shards beside it; remove the "
            "one that is not the model"
        )
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
    for name, source in tied.items():
        if name in found and source in found and not torch.equal(found[name].read(), found[source].read()):
            raise UserError(
                f"{folder}: config.json ties {name} to {source}, but both are stored, and differ; set tie_word_embeddings to "
                "false there"
            )
    # Older Llama checkpoints also hold the rotary frequencies, which follow from the configuration.
    known = re.compile("|".join([r"rotary_emb\.inv_freq$", *(model_class._keys_to_ignore_on_load_unexpected or [])]))
    for name in sorted(found.keys() - wanted.keys()):
        if not known.search(name):
            raise UserError(f"{folder}: holds {name}, which {model_class.__name__} does not have; {way_out}")
    return found
