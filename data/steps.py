"""The steps of the corpus that are ours to write: reading, keeping, settling what goes, and writing shards.

Every step writes below the work folder, one file a task, so that a task that was cut short is simply run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from septet.data import dedup
from septet.data.documents import JsonLinesWriter, read_documents
from septet.data.manifest import read_json, write_json
from septet.data.store import NUM_HASHES, SPLITS, Store, Writer
from septet.data.words import words_of

EXAMPLES = 5
_EXAMPLE_CHARACTERS = 2000
COMPRESSION_LEVEL = 1  # see JsonLinesWriter


class Progress:
    """Documents read so far by all workers; each worker holds the same number (`multiprocessing.Value`)."""

    counter: Any = None

    @classmethod
    def add(cls, documents: int) -> None:
        if cls.counter is not None:
            with cls.counter.get_lock():
                cls.counter.value += documents


class Examples:
    """A few rows of many, chosen by a hash: the same ones on each run, from anywhere in the set."""

    def __init__(self) -> None:
        self._chosen: list[tuple[str, dict[str, Any]]] = []

    def offer(self, key: str, row: dict[str, Any]) -> None:
        if key in dict(self._chosen):
            return
        if len(self._chosen) < EXAMPLES or key < self._chosen[-1][0]:
            self._chosen = sorted([*self._chosen, (key, shown(row))], key=lambda pair: pair[0])[:EXAMPLES]

    def pairs(self) -> list[tuple[str, dict[str, Any]]]:
        return self._chosen


class Tally:
    """What the steps of one task count, written at its end as one JSON file; the tasks' files are added up by `total`."""

    def __init__(self) -> None:
        self.read: dict[str, Counter] = defaultdict(Counter)  # by language: documents, bytes
        self.dropped: dict[str, Counter] = defaultdict(Counter)  # by reason: documents by language
        self.masked: dict[str, Counter] = defaultdict(Counter)  # by language: personal data by kind
        self.contaminated: Counter[str] = Counter()  # by number of an evaluation set's item: documents
        self.contaminated_documents: Counter[str] = Counter()  # by number of an evaluation set
        self.unreadable: Counter[str] = Counter()  # by reason: rows that are no document
        self.examples: dict[str, Examples] = defaultdict(Examples)  # by reason

    def clear(self) -> None:
        self.__init__()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        examples = {reason: chosen.pairs() for reason, chosen in self.examples.items()}
        write_json(path, self.__dict__ | {"examples": examples})

    @classmethod
    def total(cls, folder: Path) -> Tally:
        total = cls()
        for file in sorted(folder.glob("*.json")):
            part = read_json(file)
            for name in ("read", "dropped", "masked"):
                for key, counts in part[name].items():
                    getattr(total, name)[key].update(counts)
            for name in ("contaminated", "contaminated_documents", "unreadable"):
                getattr(total, name).update(part[name])
            for reason, pairs in part["examples"].items():
                for key, row in pairs:
                    total.examples[reason].offer(key, row)
        return total


class Read(PipelineStep):
    """The first step: the documents of this task's files.

    Args:
        options: what `documents.read_documents` takes beside the file and the part.
    """

    type, name = "read", "read"

    def __init__(self, work: Path, options: dict[str, Any], rejects: Rejects):
        super().__init__()
        self.work, self.options, self.rejects, self.tally = work, options, rejects, rejects.tally

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        self.tally.clear()  # an executor may run one task after the other with the same steps
        self.rejects.writers.clear()
        unseen = 0
        for name, split, source, part, parts in read_json(self.work / "tasks.json")["tasks"][rank]:
            rows = read_documents(name, **self.options, source=source, part=(part, parts), on_bad_row=self._note)
            while True:
                with self.track_time():
                    row = next(rows, None)
                    if row is None:
                        break
                    metadata = {key: value for key, value in row.items() if key not in ("text", "id")}
                    metadata |= {"split": split, "read_bytes": len(row["text"].encode()), "has_id": "id" in row}
                    document = Document(row["text"], row.get("id") or _id_of(row["text"]), metadata=metadata)
                yield document
                unseen += 1
                if unseen == 64:
                    Progress.add(unseen)
                    unseen = 0
        Progress.add(unseen)

    def _note(self, reason: str, message: str) -> None:
        self.tally.unreadable[reason] += 1


@dataclasses.dataclass
class Rejects:
    """Where filters put what they drop (datatrove's exclusion writer): <folder>/<reason>/<task>.jsonl.gz."""

    folder: Path
    tally: Tally
    writers: dict[str, JsonLinesWriter] = dataclasses.field(default_factory=dict)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *_: Any) -> None:
        pass  # all filters of a task share this one: the task's end closes it

    def write(self, doc: Document, rank: int = 0) -> None:
        reason, row = doc.metadata.get("filter_reason") or "filtered", row_of(doc)
        reason = re.sub(r"[^a-z0-9_]+", "_", reason.lower())[:64]  # it becomes the name of a file
        if "contaminated_by" in doc.metadata:
            row["contaminated_by"] = doc.metadata["contaminated_by"]
            self.tally.contaminated.update(map(str, doc.metadata["contaminated_items"]))
            self.tally.contaminated_documents.update(map(str, doc.metadata["contaminated_sets"]))
        if reason.endswith("_language") and "language" in doc.metadata:
            row |= {name: doc.metadata[name] for name in ("language", "language_score")}
        self.tally.read[row["lang"]].update(documents=1, bytes=doc.metadata["read_bytes"])
        self.add(reason, row, rank)

    def add(self, reason: str, row: dict[str, Any], rank: int, kept_text: str | None = None) -> None:
        """Writes a row that was dropped; an example of it shows beside it the text that was kept."""
        self._writer(reason, rank).write(row)
        self.tally.dropped[reason][row["lang"]] += 1
        beside = {} if kept_text is None else {"kept_text": kept_text[:_EXAMPLE_CHARACTERS]}
        self.tally.examples[reason].offer(_id_of(row["text"]), row | beside)

    def _writer(self, reason: str, rank: int) -> JsonLinesWriter:
        if reason not in self.writers:
            path = self.folder / reason / f"{rank:05d}.jsonl.gz"
            self.writers[reason] = JsonLinesWriter(path, COMPRESSION_LEVEL)
        return self.writers[reason]

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Keep(PipelineStep):
    """The last step over single documents: signs what passed and puts it into the store."""

    type, name = "dedup", "sign and keep"

    def __init__(self, work: Path, hold_out_share: float, near_duplicates: float, rejects: Rejects):
        super().__init__()
        self.work, self.rejects, self.tally = work, rejects, rejects.tally
        self.hold_out_share, self.near_duplicates = hold_out_share, near_duplicates

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        unsigned = np.zeros(NUM_HASHES, dtype=np.uint32), (np.empty(0, dtype=np.uint32), 0)
        with contextlib.closing(Writer(self.work / "documents", rank)) as writer:
            for doc in data:
                with self.track_time():
                    lang, split = doc.metadata["lang"], doc.metadata["split"]
                    digest = dedup.text_digest(doc.text)
                    # Chosen by the text alone: neither order nor neighbours matter.
                    if self.hold_out_share and int.from_bytes(digest[:8], "big") < self.hold_out_share * 2**64:
                        split = "validation"
                    signed = unsigned
                    if self.near_duplicates:
                        values = dedup.shingles(words_of(doc.text))
                        signed = dedup.signature(values), dedup.sketch(values)
                    given_id = int(_id_of(doc.id), 16) | 1 if doc.metadata["has_id"] else 0
                    writer.add(row_of(doc), split, digest, *signed, id=given_id)
                    self.tally.read[lang].update(documents=1, bytes=doc.metadata["read_bytes"])
                    self.tally.masked[lang].update(doc.metadata.get("pii", {}))
                yield doc
        self.rejects.close()
        self.tally.write(self.work / "tallies" / f"{rank:05d}.json")


@dataclasses.dataclass
class Resolve:
    """One task: settles who goes, deals the rest out to shards, and counts and samples what stays.

    Writes resolved/: goes.npy and because.npy (see `dedup.resolve`), shards.json, and kept.json.
    """

    work: Path
    shard_bytes: int

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        store, folder = Store(self.work / "documents"), self.work / "resolved"
        exact = np.load(self.work / "exact" / "exact.npy")
        goes, because = dedup.resolve(store, exact, sorted((self.work / "similar").glob("*.npy")))
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "goes.npy", goes)
        np.save(folder / "because.npy", because)

        counts: dict[str, dict[str, Counter]] = {split: defaultdict(Counter) for split in SPLITS}  # by lang/source
        lengths: dict[str, Counter] = defaultdict(Counter)  # by language: bits of the length in characters
        candidates: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by language: digest, number
        written = dict.fromkeys(SPLITS, 0)  # bytes of text
        shards: dict[str, list[list[tuple[int, int, int]]]] = {split: [] for split in SPLITS}  # task, first row, end
        for task in store.tasks:
            rows, names = store.rows(task), store.names(task)
            stays = ~goes[store.first[task] : store.first[task + 1]]
            for index, split in enumerate(SPLITS):
                mine = np.flatnonzero(stays & (rows["split"] == index))
                before = written[split] + np.concatenate([[0], np.cumsum(rows["bytes"][mine], dtype=np.int64)])
                written[split] = int(before[-1])
                number = before[:-1] // self.shard_bytes  # a document goes where its first byte falls
                for shard in np.unique(number).tolist():
                    members = mine[number == shard]
                    while len(shards[split]) <= shard:
                        shards[split].append([])
                    shards[split][shard].append((task, int(members[0]), int(members[-1]) + 1))
            for lang, source, split, sums in _sums_by_group(rows[stays]):
                counts[SPLITS[split]][f"{names['langs'][lang]}/{names['sources'][source]}"].update(sums)
            for lang, name in enumerate(names["langs"]):
                mine = np.flatnonzero(stays & (rows["lang"] == lang))
                bits = np.bincount(np.frexp(rows["characters"][mine].astype(np.float64))[1])
                lengths[name].update({str(bit): int(number) for bit, number in enumerate(bits) if number})
                least = mine[np.argsort(rows["digest"][mine, 0], kind="stable")[:EXAMPLES]]
                offered = [(int(rows["digest"][row, 0]), int(store.first[task] + row)) for row in least]
                candidates[name] = sorted(candidates[name] + offered)[:EXAMPLES]
        # A shard number between two others may have stayed empty, where one document was larger than a shard.
        plan = [(split, members) for split in SPLITS for members in shards[split] if members]
        numbers = {split: itertools.count() for split in SPLITS}
        write_json(folder / "shards.json", [[split, next(numbers[split]), members] for split, members in plan])
        examples = {
            lang: [shown(json.loads(store.line(number))) for _, number in chosen]
            for lang, chosen in sorted(candidates.items())
        }
        kept = {"counts": counts, "lengths": lengths, "examples": examples}
        write_json(folder / "kept.json", kept | {"repeated_ids": int(np.load(self.work / "exact/repeated_ids.npy"))})
        yield from ()


@dataclasses.dataclass
class WriteShards:
    """Writes every task-th shard, and what de-duplication dropped of one task's documents."""

    work: Path

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        store = Store(self.work / "documents")
        goes = np.load(self.work / "resolved" / "goes.npy", mmap_mode="r")
        for split, number, parts in read_json(self.work / "resolved" / "shards.json")[rank::world_size]:
            path = self.work / "out" / split / f"{number:05d}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with JsonLinesWriter(path, COMPRESSION_LEVEL) as writer:
                for task, start, end in parts:
                    rows = store.rows(task)
                    stays = (rows["split"] == SPLITS.index(split)) & ~goes[store.first[task] : store.first[task + 1]]
                    for line, wanted in zip(store.lines(task, start), stays[start:end].tolist(), strict=False):
                        if wanted:
                            writer.write_lines(line)
        if rank in store.tasks:
            self._write_duplicates(store, rank)
        yield from ()

    def _write_duplicates(self, store: Store, task: int) -> None:
        tally = Tally()
        rejects = Rejects(self.work / "rejects", tally)
        because = np.load(self.work / "resolved" / "because.npy", mmap_mode="r")
        start, end = np.searchsorted(because["later"], store.first[task : task + 2].astype(np.uint64))
        for earlier, later, similarity, exact in because[start:end].tolist():
            row, other = json.loads(store.line(later)), json.loads(store.line(earlier))
            reason = "exact_duplicate" if exact else "near_duplicate"
            if [SPLITS[store.row(number)["split"]] for number in (later, earlier)] == ["train", "validation"]:
                reason = "in_validation"
            row |= {"duplicate_of": other["id"], "jaccard": round(similarity, 3)}
            rejects.add(reason, row, task, other["text"])
        rejects.close()
        tally.write(self.work / "tallies_of_duplicates" / f"{task:05d}.json")


def row_of(doc: Document) -> dict[str, Any]:
    return {"id": doc.id, "text": doc.text, "source": doc.metadata["source"], "lang": doc.metadata["lang"]}


def gather_rejects(work: Path, folder: Path) -> None:
    """Puts the tasks' rejects together, one file a reason: gzip files, one after the other, are a gzip file."""
    for reason in sorted(work.iterdir()) if work.is_dir() else ():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{reason.name}.jsonl.gz", "wb") as out:
            for part in sorted(reason.iterdir()):
                with open(part, "rb") as file:
                    while block := file.read(1 << 20):
                        out.write(block)


def _sums_by_group(rows: np.ndarray) -> Iterator[tuple[int, int, int, dict[str, int]]]:
    """(language, source, split, sums) of each group of a task's rows."""
    packed = (rows["lang"].astype(np.int64) << 40) | (rows["source"].astype(np.int64) << 8) | rows["split"]
    values, group = np.unique(packed, return_inverse=True)
    documents = np.bincount(group, minlength=len(values))
    sums = {name: np.bincount(group, rows[name], minlength=len(values)) for name in ("bytes", "characters")}
    for k, value in enumerate(values.tolist()):
        counts = {"documents": int(documents[k]), **{name: int(of_group[k]) for name, of_group in sums.items()}}
        yield value >> 40, (value >> 8) & 0xFFFFFFFF, value & 0xFF, counts


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as an example: with the length of its text, and the text cut."""
    return {"characters": len(row["text"])} | row | {"text": row["text"][:_EXAMPLE_CHARACTERS]}


def _id_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
