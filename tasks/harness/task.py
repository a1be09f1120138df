"""What a task is: its columns, its head, how a row becomes tokens, and how the model's output becomes an answer.

One module of `septet.tasks` with `TASK = ...` is one task; the folder is the registry. Three kinds of reading are ready to
derive from: `Task` itself, `harness.generation.GenerationTask` for text in, text out, and the heads in the recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from septet.data.documents import check_columns, read_rows
from septet.data.errors import UserError, suggestion

SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet", ".csv")


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a task set, in the shape that predictions and reports have."""

    id: str
    lang: str
    """of the reference: en, fr or zh"""
    input: dict[str, Any]
    reference: Any
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """what only training needs, such as where an answer starts"""
    mended: bool = False
    """whether the row was read otherwise than it is written, by a rule of the recipe's; the report counts them"""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read a task set: which columns, in which languages."""

    columns: Mapping[str, str]
    """role -> column, for roles whose column has another name than the recipe's"""
    lang: str | None = None
    """language of rows without a `lang` column"""
    source_lang: str = "en"
    target_lang: str = "fr"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Fine-tuning settings of a recipe; the reasons stand in the recipe's docstring."""

    epochs: float = 4
    batch_size: int = 32
    label_smoothing: float = 0.0
    num_beams: int = 1
    max_new_tokens: int = 64
    length_penalty: float = 1.0
    """of beams, as transformers has it: they are compared by log-probability / tokens ** length_penalty, so more of it
    favours longer answers"""
    no_repeat_ngram_size: int = 0
    """no run of so many tokens twice (Paulus et al. 2018), the prompt's included, so that an answer cannot quote either;
    0: allowed"""


class Task:
    """A recipe. Subclasses set the class variables and say how rows, tokens and answers hang together."""

    name: ClassVar[str]
    title: ClassVar[str]
    hub_id: ClassVar[str]
    """a set of the Hub in these columns"""
    columns: ClassVar[dict[str, str]]
    """role -> column of that set"""
    head: ClassVar[str]
    """the class that is fine-tuned"""
    attention_mode: ClassVar[str]
    pipeline_tag: ClassVar[str]
    primary_metric: ClassVar[str]
    metrics: ClassVar[Any] = None
    """a family of harness.metrics by its name, or a tuple of `Metric`s of the task's own; None: the family of its name"""
    metric_module: ClassVar[str | None] = None
    """file in septet/tasks/metrics that the scores are checked against, if there is one"""
    baselines: ClassVar[Mapping[str, Callable[..., list[Any]]] | None] = None
    """name -> function of (train rows, test rows) to predictions; None: those of harness.baselines under its name"""
    defaults: ClassVar[Defaults] = Defaults()
    balances: ClassVar[str] = ""
    """whether a row has "one" of several classes, which may be of unequal size, or "several" (harness.imbalance)"""
    scored_while_training: ClassVar[bool] = True
    """whether the validation set is predicted and scored after each epoch; else its loss stands for the score"""

    @property
    def family(self) -> Any:
        """What harness.metrics scores it by."""
        return self.name if self.metrics is None else self.metrics

    @property
    def validation_rises(self) -> bool:
        """Whether a better model has a higher validation score, and not a lower error or loss."""
        from septet.tasks.harness import metrics

        return self.scored_while_training and metrics.get(self.family, self.primary_metric).higher_is_better

    # ---- rows
    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        """A row as an example. Raises ValueError with the value and the rule; the caller adds file and row."""
        raise NotImplementedError

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
        """Fields of the model's configuration that training set and tokenizer decide, such as the labels."""
        return {}

    def check(self, examples: Sequence[Example], config: Any) -> None:
        """Raises a `UserError` if a model with this configuration cannot be scored on these examples."""

    # ---- training
    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        """Features for training; each may hold `truncated`, which is counted and then dropped."""
        raise NotImplementedError

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """A padded batch of tensors: ids with pad, labels with -100, on the right."""
        import numpy as np
        import torch

        length = max(len(feature["input_ids"]) for feature in features)
        batch: dict[str, Any] = {}
        for key in features[0]:
            if key == "input_ids":
                rows = [[*f[key], *[tokenizer.pad_token_id] * (length - len(f[key]))] for f in features]
                batch["attention_mask"] = torch.tensor(
                    [[1] * len(f[key]) + [0] * (length - len(f[key])) for f in features]
                )
            elif key == "labels" and isinstance(features[0][key], list):
                rows = [[*f[key], *[-100] * (length - len(f[key]))] for f in features]
            else:
                rows = [f[key] for f in features]
            batch[key] = torch.from_numpy(np.stack(rows)) if isinstance(rows[0], np.ndarray) else torch.tensor(rows)
        return batch

    def finish(self, model: Any, tokenizer: Any, settings: Any) -> None:
        """What the finished model carries beside its weights: generation settings, a chat template."""

    # ---- answers
    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        """For each example a row with `prediction`, `truncated`, and whatever else the report should show."""
        raise NotImplementedError

    def combined(self, members: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The answers of several models to the same rows as one (an ensemble).

        Raises:
            UserError: this task's answers cannot be combined.
        """
        raise UserError(
            f"--ensemble: answers of {self.name} cannot be combined; classification, multilabel and regression can"
        )

    def showcase(self, given: Mapping[str, Any]) -> Example:
        """An input typed by a person, as an example without a reference."""
        raise NotImplementedError

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        """A prediction as a person reads it."""
        return str(prediction["prediction"])

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Further parts of the report, from the rows of predictions.jsonl: `classes`, `confusion`, `calibration`."""
        return {}


@cache
def all_tasks() -> dict[str, Task]:
    """Every recipe of the `septet.tasks` folder by its name."""
    import septet.tasks

    found = {}
    for module in pkgutil.iter_modules(septet.tasks.__path__):
        if not module.ispkg:
            task = getattr(importlib.import_module(f"septet.tasks.{module.name}"), "TASK", None)
            if task is not None:
                found[task.name] = task
    return found


def get_task(name: str) -> Task:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message suggests one.
    """
    if name not in all_tasks():
        raise UserError(f"task {name!r} is unknown; {suggestion(name, all_tasks())}")
    return all_tasks()[name]


def split_file(folder: Path, split: str) -> Path:
    """The file of a split in a task set's folder.

    Raises:
        UserError: there is no such folder or file; the message names the splits there are.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --data is a folder with train.jsonl.gz, validation.jsonl.gz ...")
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    there = sorted(p.name.split(".")[0] for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    raise UserError(f"{folder}: has no {split} split ({suggestion(split, there)}); name one of those")


def has_split(folder: Path, split: str) -> bool:
    """Whether a task set has this split."""
    return any((Path(folder) / f"{split}{suffix}").is_file() for suffix in SUFFIXES)


def read_examples(
    task: Task, data: str | Path, split: str, reading: Reading, limit: int | None = None
) -> list[Example]:
    """The examples of a split: of a folder of files, or of `hub:owner/name[:config]`.

    Raises:
        UserError: a missing or damaged file, a wrong column, an empty set, a row that breaks the task's rules, or a
            language that is not given.
    """
    if str(data).startswith("hub:"):
        place, rows = str(data), _hub_rows(str(data), split)
    else:
        place = split_file(Path(data), split)
        rows = read_rows(place)
    unknown = set(reading.columns) - set(task.columns)
    if unknown:
        role = sorted(unknown)[0]
        raise UserError(f"column role {role!r}: {task.name} has none of that name; {suggestion(role, task.columns)}")
    columns = {**task.columns, **reading.columns}
    for role, column in columns.items():
        check_columns(place, rows[0], [column], f"map it with --columns {role} NAME, or rename it")
    examples = []
    for number, row in enumerate(rows[:limit]):
        try:
            examples.append(task.example({"id": f"{split}-{number}", **row}, columns, reading))
        except (KeyError, TypeError, ValueError) as error:
            message = f"a row without {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{place}, row {number + 1}: {message}; mend the row, or leave it out") from error
    return examples


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 of what was read, for sets that are no file here."""
    found = hashlib.sha256()
    for e in examples:
        line = json.dumps([e.id, e.lang, e.input, e.reference], ensure_ascii=False, sort_keys=True)
        found.update(f"{line}\n".encode())
    return found.hexdigest()


def _hub_rows(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    repo, _, config = name.removeprefix("hub:").partition(":")
    try:
        data = datasets.load_dataset(repo, config or None, split=split)
    except Exception as error:
        said = str(error).splitlines()[0]
        way_out = (
            "save the set as a folder with train and validation files"
            if "split" in said
            else "check the name and the network"
        )
        raise UserError(f"{name}: cannot be loaded ({said}); {way_out}") from error
    names = {}  # of columns that hold numbers of classes, or lists of them
    for column, feature in data.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.ClassLabel):
            names[column] = inner.names
    return [{**row, **{column: _named(row[column], known) for column, known in names.items()}} for row in data]


def _named(value: Any, names: Sequence[str]) -> Any:
    """Numbers of classes as their names; what is no class (-1: a row of the Hub without a label) as it is."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def language(row: Mapping[str, Any], reading: Reading) -> str:
    """The language of a row: its `lang` column, or --lang."""
    lang = row.get("lang") or reading.lang
    if lang not in ("en", "fr", "zh"):
        raise ValueError(f"language {lang!r}; a row needs a `lang` column with en, fr or zh, or give --lang")
    return str(lang)


def text_of(row: Mapping[str, Any], column: str) -> str:
    """A text column's value, which may not be empty."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} holds {value!r}; it must hold text")
    return value


def require_finite(scores: Any) -> None:
    """Raises a `UserError` unless every element of a tensor is finite: what is read off NaN looks like an answer."""
    if not scores.isfinite().all():
        raise UserError(
            "the model's scores are not finite (NaN or infinity); it cannot be evaluated; train it again, with a lower "
            "--learning-rate"
        )


def padded_batches(lengths: Sequence[int], batch_size: int) -> Iterable[list[int]]:
    """Indices in batches of similar length, the longest first, so that what does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
