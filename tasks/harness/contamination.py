"""What of a test set a model may have read before: in the corpus it was pre-trained on, and in the task's own train rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from septet.data.decontaminate import Decontaminate, build_index
from septet.data.documents import iterate_rows
from septet.data.errors import UserError
from septet.data.manifest import read_json
from septet.data.words import words_of
from septet.tasks.harness.task import Example


def in_corpus(test: Path, corpus: Path, num_rows: int) -> dict[str, int]:
    """How many rows of a test set share a piece with the training documents of a corpus (`septet.data.decontaminate`).

    Args:
        test: the set's file.
        corpus: what `septet corpus` wrote.
        num_rows: rows that are scored, the first ones of the file.

    Returns:
        {"rows_checked", "rows_found"}: rows with a text that is long enough to tell, and those found.

    Raises:
        UserError: the corpus has no training documents.
    """
    from tqdm import tqdm

    files = sorted((Path(corpus) / "train").glob("*.jsonl.gz"))
    if not files:
        raise UserError(f"--corpus {corpus}: has no train/*.jsonl.gz; give the folder that `septet corpus` wrote")
    with tempfile.TemporaryDirectory() as aside:
        build_index([test], Path(aside))
        index = Decontaminate(Path(aside))
        items = read_json(Path(aside) / "items.json")
        found: set[int] = set()
        documents = (document for file in files for document in iterate_rows(file))
        for document in tqdm(documents, desc="contamination", unit=" documents", mininterval=1):
            found |= index.items_in(words_of(document["text"]))
    checked = {row for _, row, _ in items if row <= num_rows}
    return {"rows_checked": len(checked), "rows_found": len({items[number][1] for number in found} & checked)}


def in_train(train: Sequence[Example], test: Sequence[Example]) -> int:
    """How many test rows have an input that is also a train row's, to the letter."""

    def key(example: Example) -> str:
        return json.dumps(example.input, sort_keys=True, ensure_ascii=False)

    known = {key(example) for example in train}
    return sum(key(example) in known for example in test)
