"""Decontamination: drops documents that hold a piece of an evaluation set, and reports which rows of it were found.

Every string of a row is compared, however deep it lies in it, but for ids, labels and paths, which are short. A
document is contaminated if it holds 13 words in a row of one (Brown et al. 2020, https://arxiv.org/abs/2005.14165,
appendix C), or 20 characters of a Chinese one, which carry as much (some 1.6 characters a word); of a shorter one, the
whole. Texts of fewer than 8 words or 12 characters occur by chance and cannot be told from it: the report counts them.
Words are compared as in `septet.data.words`: case, punctuation and white space do not matter.

The index goes by the first 8 words of each piece: a table of their hashes' first bits clears most places of a document
at once, and the rest is compared in full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from septet.data.clean import Clean
from septet.data.documents import ROWS, iterate_rows
from septet.data.errors import UserError
from septet.data.manifest import FILE_NAME, read_json, write_json
from septet.data.words import Words, words_of

WORDS, CHARACTERS = 13, 20
LEAST_WORDS, LEAST_CHARACTERS = 8, 12
_ANCHOR = LEAST_WORDS
_TABLE_BITS = 24
_PIECE = np.dtype([("anchor", "<u8"), ("hash", "<u8"), ("words", "<u2"), ("item", "<u4")])


def evaluation_files(paths: Iterable[str]) -> list[Path]:
    """The files behind `--decontaminate`: a folder stands for its validation and test parts, or for all its files.

    Raises:
        UserError: a path does not exist, or holds no file of rows.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_file():
            found.append(path)
            continue
        files = [p for p in sorted(path.glob("*")) if p.name.endswith(ROWS) and p.name != FILE_NAME and p.is_file()]
        held_out = [p for p in files if not p.name.startswith("train")]
        if not files:
            raise UserError(
                f"--decontaminate {name}: no file of rows there ({', '.join(ROWS)}); give the files or folders of evaluation "
                "sets"
            )
        found += held_out or files
    return found


def build_index(files: list[Path], output: Path) -> None:
    """Reads evaluation sets and writes their index: pieces.npy, and sets.json with what each set holds.

    Each text of an evaluation set is an item, known by its place among the items of all sets.
    """
    pieces: list[np.ndarray] = [np.empty(0, dtype=_PIECE)]
    sets: list[dict[str, Any]] = []
    items: list[tuple[int, int, str]] = []  # number of the set, row, column
    clean = Clean()
    for file in files:
        name, rows, checked, too_short = _name_of(file), 0, set(), 0
        if name in (known["name"] for known in sets):
            name = f"{name} ({len(sets) + 1})"
        for rows, row in enumerate(iterate_rows(file), start=1):
            for column, text in texts_of(row):
                words = words_of(clean.format(text))  # as documents are when they are compared
                least, most = (LEAST_CHARACTERS, CHARACTERS) if words.are_characters else (LEAST_WORDS, WORDS)
                if len(words.hashes) < least:
                    too_short += 1
                    continue
                size = min(most, len(words.hashes))
                hashes = words.n_grams(size)
                piece = np.empty(len(hashes), dtype=_PIECE)
                piece["anchor"], piece["hash"] = words.n_grams(_ANCHOR)[: len(hashes)], hashes
                piece["words"], piece["item"] = size, len(items)
                pieces.append(piece)
                items.append((len(sets), rows, column))
                checked.add(rows)
        sets.append({"name": name, "rows": rows, "rows_checked": len(checked), "texts_too_short": too_short})
    every = np.concatenate(pieces)
    output.mkdir(parents=True, exist_ok=True)
    np.save(output / "pieces.npy", every[np.argsort(every["anchor"], kind="stable")])
    write_json(output / "items.json", items)
    write_json(output / "sets.json", sets)


def texts_of(value: Any, column: str = "") -> Iterator[tuple[str, str]]:
    """(column, text) of every string in a row; the strings of a list are one text, as tokens are, and those of several words
    each its own too, as references or choices are."""
    if isinstance(value, str):
        yield column, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_of(inner, f"{column}.{key}" if column else str(key))
    elif isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            yield column, " ".join(value)
            if len(value) > 1:
                yield from ((column, item) for item in value if _is_text(item))
        else:
            for inner in value:
                yield from texts_of(inner, column)


def _is_text(item: str) -> bool:
    """Whether an item of a list is long enough to be told from chance, if it stands in a document by itself."""
    words = words_of(item)
    return len(words.hashes) >= (LEAST_CHARACTERS if words.are_characters else LEAST_WORDS)


class Decontaminate(BaseFilter):
    """Drops the documents that hold a piece of an item of the index in `folder`.

    Notes in the document's metadata the numbers of the items and of their sets, "contaminated_items" and
    "contaminated_sets", and what a reader understands, "contaminated_by": <set>:<row>:<column>.
    """

    name = "decontaminate"
    reasons = {
        "contaminated": f"holds {WORDS} words in a row ({CHARACTERS} characters of Chinese) of a text of an evaluation "
        f"set, or a whole shorter one of at least {LEAST_WORDS} ({LEAST_CHARACTERS})"
    }

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:  # each worker loads its own
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_pieces", "_table", "_items", "_sets")
        }

    @cached_property
    def _pieces(self) -> np.ndarray:
        return np.load(self.folder / "pieces.npy")

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        table[self._pieces["anchor"] >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    @cached_property
    def _items(self) -> list[tuple[int, int, str]]:
        return read_json(self.folder / "items.json")

    @cached_property
    def _sets(self) -> list[dict[str, Any]]:
        return read_json(self.folder / "sets.json")

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        found = self.items_in(words_of(doc.text))
        if not found:
            return True
        items = [self._items[number] for number in sorted(found)]
        doc.metadata["contaminated_items"] = sorted(found)
        doc.metadata["contaminated_sets"] = sorted({number for number, _, _ in items})
        doc.metadata["contaminated_by"] = [
            f"{self._sets[number]['name']}:{row}:{column}" for number, row, column in items
        ]
        return False, "contaminated"

    def items_in(self, words: Words) -> set[int]:
        """The items of which `words` hold a piece."""
        anchors = words.n_grams(_ANCHOR)
        places = np.flatnonzero(self._table[anchors >> np.uint64(64 - _TABLE_BITS)])
        found: set[int] = set()
        if not len(places):
            return found
        starts, ends = (np.searchsorted(self._pieces["anchor"], anchors[places], side) for side in ("left", "right"))
        hashes: dict[int, np.ndarray] = {}
        for place, start, end in zip(places.tolist(), starts.tolist(), ends.tolist(), strict=True):
            pieces = self._pieces[start:end]
            for size in np.unique(pieces["words"]).tolist():
                if size not in hashes:
                    hashes[size] = words.n_grams(size)
                if place < len(hashes[size]):
                    equal = (pieces["words"] == size) & (pieces["hash"] == hashes[size][place])
                    found.update(pieces["item"][equal].tolist())
        return found


def report(folder: Path, found: Counter[str], documents: Counter[str]) -> list[dict[str, Any]]:
    """What was found of each set of the index in `folder`.

    Args:
        found: number of an item -> documents that hold a piece of it.
        documents: number of a set -> documents dropped because of it.

    Returns:
        By set: name; rows; rows_checked, which have at least one text long enough; texts_too_short; rows_found, of
        which the corpus held a piece, and found_by_column; documents_dropped.
    """
    items = read_json(folder / "items.json")
    hits = [items[int(number)] for number in found]
    out = []
    for index, known in enumerate(read_json(folder / "sets.json")):
        mine = [(row, column) for number, row, column in hits if number == index]
        columns = Counter(column for _, column in mine)
        out.append(
            known
            | {"rows_found": len({row for row, _ in mine}), "found_by_column": dict(sorted(columns.items()))}
            | {"documents_dropped": documents[str(index)]}
        )
    return out


def _name_of(file: Path) -> str:
    """`squad/validation` for .../squad/validation.jsonl.gz."""
    name = file.name.removesuffix(".gz")
    return f"{file.parent.name}/{name.rpartition('.')[0] or name}"
