"""The documents of a corpus while it is being made: text in one file a task, and beside it what de-duplication reads.

A task of the pipeline appends to four files, whose rows correspond:

    <task>.jsonl        the documents as they will stand in the corpus, one a line
    <task>.rows         `ROW`: where the line stands, how long the text is, its digest, where its sketch stands
    <task>.signatures   (rows, NUM_HASHES) uint32, the MinHash signatures
    <task>.sketches     uint32, the sketches (`dedup.sketch`), one after the other

Over all tasks a document has one number, counted in the order of the inputs. No stage holds all documents: a task holds
at most its own rows, and reads what it needs of others by position.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from septet.data.manifest import read_json, write_json

NUM_HASHES = 125
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the line in <task>.jsonl
        ("size", "<u4"),  # of the line, in bytes
        ("bytes", "<u4"),  # of the text, in UTF-8
        ("characters", "<u4"),
        ("digest", "<u8", 2),  # of the text's letters and digits
        ("id", "<u8"),  # a hash of the id that the input gave; 0 if it gave none
        ("sketch", "<u8"),  # place in <task>.sketches, in numbers
        ("sketch_size", "<u4"),
        ("sketch_scale", "u1"),
        ("split", "u1"),  # index in SPLITS
        ("lang", "<u2"),  # index in the task's names
        ("source", "<u4"),
    ]
)
SPLITS = ("train", "validation")
_ROWS_AT_ONCE = 1024


class Writer:
    """Writes one task's documents into `folder`; `close` makes them whole."""

    def __init__(self, folder: Path, task: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{task:05d}"
        self._lines, self._signatures, self._sketches = (
            open(self._path.with_suffix(suffix), "wb")  # noqa: SIM115 (closed by close)
            for suffix in (".jsonl", ".signatures", ".sketches")
        )
        self._rows: list[np.ndarray] = []
        self._row = np.zeros(_ROWS_AT_ONCE, dtype=ROW)
        self._filled = self._offset = self._sketch = 0
        self._langs: dict[str, int] = {}
        self._sources: dict[str, int] = {}

    def add(self, row: dict[str, str], split: str, digest: bytes, signature: np.ndarray, sketch: tuple, **more) -> None:
        """Adds a document.

        Args:
            row: the line to write: id, text, source and lang.
            digest: 16 bytes.
            signature: (NUM_HASHES,) uint32.
            sketch: what `dedup.sketch` gives: (values, scale).
            more: other fields of `ROW`.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        values, scale = sketch
        if self._filled == _ROWS_AT_ONCE:
            self._rows.append(self._row.copy())
            self._filled = 0
        fields = {
            "offset": self._offset,
            "size": len(line),
            "bytes": len(row["text"].encode()),
            "characters": len(row["text"]),
            "digest": np.frombuffer(digest, dtype="<u8"),
            "id": 0,
            "sketch": self._sketch,
            "sketch_size": len(values),
            "sketch_scale": scale,
            "split": SPLITS.index(split),
            "lang": self._langs.setdefault(row["lang"], len(self._langs)),
            "source": self._sources.setdefault(row["source"], len(self._sources)),
        } | more
        self._row[self._filled] = tuple(fields[name] for name in ROW.names)
        self._filled += 1
        self._lines.write(line)
        self._signatures.write(signature.tobytes())
        self._sketches.write(values.tobytes())
        self._offset += len(line)
        self._sketch += len(values)

    def close(self) -> None:
        for file in (self._lines, self._signatures, self._sketches):
            file.close()
        np.concatenate([*self._rows, self._row[: self._filled]]).tofile(self._path.with_suffix(".rows"))
        write_json(self._path.with_suffix(".json"), {"langs": list(self._langs), "sources": list(self._sources)})


@dataclasses.dataclass
class Store:
    """All that the tasks wrote into `folder`, read by the documents' numbers."""

    folder: Path

    @cached_property
    def first(self) -> np.ndarray:
        """(tasks + 1,) int64: the number of each task's first document, and the number of all documents."""
        sizes = [path.stat().st_size // ROW.itemsize for path in sorted(self.folder.glob("*.rows"))]
        return np.array([0, *itertools.accumulate(sizes)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def tasks(self) -> range:
        return range(len(self.first) - 1)

    def names(self, task: int) -> dict[str, list[str]]:
        """A task's languages and sources: {"langs", "sources"}."""
        return read_json(self._path(task, ".json"))

    def rows(self, task: int) -> np.ndarray:
        """(rows of the task,) `ROW`."""
        return np.fromfile(self._path(task, ".rows"), dtype=ROW)

    def signatures(self, task: int) -> np.ndarray:
        """(rows of the task, NUM_HASHES) uint32, mapped; close to nothing is read until it is indexed."""
        shape = (int(self.first[task + 1] - self.first[task]), NUM_HASHES)
        if not shape[0]:
            return np.empty(shape, dtype=np.uint32)
        return np.memmap(self._path(task, ".signatures"), dtype=np.uint32, mode="r", shape=shape)

    def place(self, numbers: np.ndarray | int) -> tuple[Any, Any]:
        """The tasks of documents, and their rows there."""
        task = np.searchsorted(self.first, numbers, side="right") - 1
        return task, numbers - self.first[task]

    def signatures_of(self, numbers: np.ndarray) -> np.ndarray:
        """(n, NUM_HASHES) uint32 for the documents `numbers` (n,)."""
        out = np.empty((len(numbers), NUM_HASHES), dtype=np.uint32)
        tasks, rows = self.place(numbers)
        for task in np.unique(tasks):
            mine = tasks == task
            out[mine] = self.signatures(int(task))[rows[mine]]
        return out

    def row(self, number: int) -> np.void:
        """A document's `ROW`."""
        task, row = self.place(number)
        return np.fromfile(self._path(int(task), ".rows"), dtype=ROW, count=1, offset=int(row) * ROW.itemsize)[0]

    def line(self, number: int) -> bytes:
        """A document's line, its newline included."""
        row = self.row(number)
        return self._read(number, ".jsonl", int(row["offset"]), int(row["size"]))

    def sketch(self, number: int) -> tuple[np.ndarray, int]:
        """A document's sketch: (values, scale)."""
        row = self.row(number)
        values = self._read(number, ".sketches", 4 * int(row["sketch"]), 4 * int(row["sketch_size"]))
        return np.frombuffer(values, dtype=np.uint32), int(row["sketch_scale"])

    def lines(self, task: int, first_row: int = 0) -> Iterator[bytes]:
        """A task's lines in order, from `first_row` on."""
        rows = self.rows(task)
        if first_row < len(rows):
            with open(self._path(task, ".jsonl"), "rb") as file:
                file.seek(int(rows["offset"][first_row]))
                yield from file

    def _read(self, number: int, suffix: str, offset: int, size: int) -> bytes:
        with open(self._path(int(self.place(number)[0]), suffix), "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _path(self, task: int, suffix: str) -> Path:
        return self.folder / f"{task:05d}{suffix}"
