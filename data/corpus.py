"""Clean, filter and de-duplicate documents into train and validation shards, keeping what is dropped, with its reason."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septet.data.documents import HUB_PREFIX, JsonLinesWriter, expand, iterate_rows, read_documents
from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, read_json, write_json, writing

if TYPE_CHECKING:
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.executor.local import LocalPipelineExecutor

# The files are shared out among so many tasks at most. It is no option and no matter of the machine, since the order
# of the documents, and with it the bytes that come out, follow from it.
_MAX_TASKS = 64
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    inputs: tuple[str, ...]
    """Files (.jsonl, .json, .parquet, .txt; .gz too), folders of them, or hub:owner/name[:config][:split]."""
    output: Path = Path("build/corpus")
    """Folder for train/, validation/, rejects/, index.html and manifest.json."""
    validation_inputs: tuple[str, ...] = ()
    """Documents to hold out; without them a share of the inputs is held out."""
    validation_share: float = 0.01
    """Share of the documents to hold out, chosen by a hash of the text; unused with --validation-inputs."""
    text_column: str = "text"
    """Column that holds the text."""
    lang_column: str = "lang"
    """Column that holds the language of a document."""
    lang: str | None = None
    """Language of all inputs; without it each document tells its own."""
    languages: tuple[str, ...] = ("en", "fr", "zh")
    """Languages to keep."""
    min_bytes: int = 100
    """Shortest document to keep, in bytes of UTF-8 (100: some 17 English words, or 33 Chinese characters)."""
    shard_megabytes: float = 256.0
    """Text in one shard, in 10^6 bytes of UTF-8."""
    overwrite: bool = False
    """Make the output again if it holds something else."""


def run(config: CorpusConfig) -> Path:
    """Makes the corpus; see `CorpusConfig`.

    Raises:
        UserError: an input that cannot be used, nothing left after the filters, or nothing held out.
    """
    if not config.inputs:
        raise UserError("--inputs: is empty; a corpus needs documents; give files, folders or hub:owner/name")
    if not config.validation_inputs and not 0 < config.validation_share < 1:
        raise UserError(
            f"--validation-share {config.validation_share}: must lie between 0 and 1; give 0.01, or --validation-inputs"
        )
    paths = {f"inputs[{i}]": name for i, name in enumerate(config.inputs)}
    paths |= {f"validation_inputs[{i}]": name for i, name in enumerate(config.validation_inputs)}
    paths = {key: name for key, name in paths.items() if not name.startswith(HUB_PREFIX)}
    if finished(config.output, "corpus", config, paths, config.overwrite):
        return config.output

    files = [(name, "validation") for name in expand(config.validation_inputs)]
    files += [(name, "train") for name in expand(config.inputs)]
    with writing(config.output, "corpus", config, paths) as out:
        work = out.path / "work"
        _filter_documents(config, files, work)
        shards = _assemble(config, work, out.path)
        out.counts["read"] = _sum_of_counts(work / "read")
        out.counts["dropped"], dropped_examples = _gather_rejects(work / "rejects", out.path / "rejects")
        out.counts["train"], out.counts["validation"] = (
            _plain(shards.counts[split]) for split in ("train", "validation")
        )
        shutil.rmtree(work)
        _check_not_empty(out.counts)
        _write_page(out.path / "index.html", config, out.counts, shards, dropped_examples)
    kept, held_out, dropped = (
        sum(row["documents"] for row in out.counts["train"].values()),
        sum(row["documents"] for row in out.counts["validation"].values()),
        sum(sum(row.values()) for row in out.counts["dropped"].values()),
    )
    print(
        f"corpus: {kept:,} documents for training, {held_out:,} held out, {dropped:,} dropped; {config.output}/index.html",
        flush=True,
    )
    return config.output


def _filter_documents(config: CorpusConfig, files: list[tuple[str, str]], work: Path) -> None:
    """Reads and filters all files, several at once: work/{kept,read,rejects}/ then hold what came of each task."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from tqdm import tqdm

    from septet.data.dedup import AddDigest
    from septet.data.filters import document_steps

    rejects = Rejects(work / "rejects")
    steps = [*document_steps(config.languages, config.min_bytes), AddDigest()]
    for step in steps:
        if isinstance(step, BaseFilter):
            step.exclusion_writer = rejects
    tasks = min(len(files), _MAX_TASKS)
    pipeline = [Read(config, files, work / "read"), *steps, Keep(work / "kept", rejects)]
    executor = LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=str(work / "log"))
    bar = functools.partial(tqdm, total=tasks, desc="corpus: files", disable=None)
    workers = min(tasks, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if workers == 1:
        for task in bar(range(tasks)):
            _run_task(executor, task)
        return
    # Not LocalPipelineExecutor.run: its pool waits for ever if a worker is killed (by lack of memory, say).
    context = multiprocessing.get_context("forkserver")
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        try:
            for _ in bar(pool.map(functools.partial(_run_task, executor), range(tasks))):
                pass
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # or the message would wait until the other files are through
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UserError(
                    f"{config.output}: a worker was killed, perhaps for lack of memory; free some and run again"
                ) from error
            raise


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone; left to itself it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_task(executor: LocalPipelineExecutor, task: int) -> None:
    """Runs one task of a datatrove pipeline. Its log goes into the executor's folder alone, not to the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        executor._run_for_rank(task, local_rank=1)


def _assemble(config: CorpusConfig, work: Path, folder: Path) -> Shards:
    """Holds out, drops duplicates over all tasks, and writes the shards, in the order of the inputs."""
    from datatrove.executor.local import LocalPipelineExecutor
    from tqdm import tqdm

    from septet.data.dedup import FirstOfItsText, HoldOut

    rejects, shards = Rejects(work / "rejects"), Shards(folder, config.shard_megabytes)
    first_of_its_text = FirstOfItsText()
    first_of_its_text.exclusion_writer = rejects
    hold_out = [] if config.validation_inputs else [HoldOut(config.validation_share)]
    with tqdm(desc="corpus: de-duplicated documents", disable=None) as bar:
        pipeline = [Reread(work / "kept", bar), *hold_out, first_of_its_text, shards]
        # The tasks' rejects come first: this one's number follows theirs.
        executor = LocalPipelineExecutor(pipeline, tasks=_MAX_TASKS + 1, logging_dir=str(work / "log"))
        _run_task(executor, _MAX_TASKS)
    rejects.close()
    return shards


@dataclasses.dataclass
class Read:
    """The first step: yields the documents of this task's files and counts them by language."""

    config: CorpusConfig
    files: list[tuple[str, str]]  # (name, split), validation first
    counts_folder: Path

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        from datatrove.data import Document

        counts: dict[str, Counter] = defaultdict(Counter)
        # Neighbouring files go together, so that the tasks' results, put one after the other, keep the order.
        for name, split in self.files[
            rank * len(self.files) // world_size : (rank + 1) * len(self.files) // world_size
        ]:
            for row in read_documents(name, self.config.text_column, self.config.lang_column, self.config.lang):
                encoded = row["text"].encode()
                counts[row["lang"]].update(documents=1, bytes=len(encoded))
                document_id = row.get("id") or hashlib.blake2b(encoded, digest_size=8).hexdigest()
                yield Document(
                    row["text"], document_id, metadata={"source": row["source"], "lang": row["lang"], "split": split}
                )
        self.counts_folder.mkdir(parents=True, exist_ok=True)
        write_json(self.counts_folder / f"{rank:05d}.json", counts)


class Rejects:
    """Where filters put what they drop (datatrove's exclusion writer): <folder>/<reason>/<task>.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writers: dict[str, JsonLinesWriter] = {}

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *_: Any) -> None:
        pass  # all filters of a task share this one: the task's end closes it

    def write(self, doc: Document, rank: int = 0) -> None:
        reason = doc.metadata["filter_reason"]
        if reason not in self._writers:
            self._writers[reason] = JsonLinesWriter(self.folder / reason / f"{rank:05d}.jsonl")
        self._writers[reason].write(_row(doc))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@dataclasses.dataclass
class Keep:
    """The last step of a task: writes what passed to <folder>/<task>.jsonl."""

    folder: Path
    rejects: Rejects

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with JsonLinesWriter(self.folder / f"{rank:05d}.jsonl") as writer:
            for doc in data:
                writer.write(_row(doc) | {"split": doc.metadata["split"], "digest": doc.metadata["digest"]})
                yield doc
        self.rejects.close()


@dataclasses.dataclass
class Reread:
    """Yields what the tasks kept, task after task."""

    folder: Path
    bar: Any

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        from datatrove.data import Document

        for file in sorted(self.folder.iterdir()):
            for row in iterate_rows(file) if file.stat().st_size else ():
                yield Document(row.pop("text"), row.pop("id"), metadata=row)
                self.bar.update()


class Examples:
    """A few rows of many, chosen by a hash of their text: the same ones on each run, from anywhere in the set."""

    def __init__(self) -> None:
        self._chosen: list[tuple[bytes, dict[str, Any]]] = []

    def offer(self, row: dict[str, Any]) -> None:
        key = hashlib.blake2b(row["text"].encode(), digest_size=8).digest()
        if len(self._chosen) < _EXAMPLES or key < self._chosen[-1][0]:
            self._chosen = sorted([*self._chosen, (key, row)], key=lambda pair: pair[0])[:_EXAMPLES]

    def rows(self) -> list[dict[str, Any]]:
        return [row for _, row in self._chosen]


class Shards:
    """The last step: writes <folder>/<split>/<number>.jsonl.gz, and counts and samples what it writes."""

    def __init__(self, folder: Path, shard_megabytes: float):
        self.folder, self.shard_bytes = folder, int(shard_megabytes * 1e6)
        self.counts: dict[str, dict[str, Counter]] = {"train": defaultdict(Counter), "validation": defaultdict(Counter)}
        self.lengths: dict[str, Counter] = defaultdict(Counter)  # by language: bits of the length in characters
        self.examples: dict[str, Examples] = defaultdict(Examples)  # by language

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with contextlib.ExitStack() as open_writers:
            writers: dict[str, JsonLinesWriter] = {}
            numbers, room = Counter(), Counter()
            for doc in data:
                split, lang, size = doc.metadata["split"], doc.metadata["lang"], len(doc.text.encode())
                if room[split] <= 0:
                    if split in writers:
                        writers[split].close()
                    path = self.folder / split / f"{numbers[split]:05d}.jsonl.gz"
                    writers[split] = open_writers.enter_context(JsonLinesWriter(path))
                    numbers[split] += 1
                    room[split] = self.shard_bytes
                room[split] -= size
                writers[split].write(_row(doc))
                self.counts[split][lang].update(documents=1, bytes=size, characters=len(doc.text))
                self.lengths[lang][len(doc.text).bit_length()] += 1
                self.examples[lang].offer(_row(doc))
                yield doc


def _row(doc: Document) -> dict[str, str]:
    return {"id": doc.id, "text": doc.text, "source": doc.metadata["source"], "lang": doc.metadata["lang"]}


def _plain(counts: dict[str, Counter]) -> dict[str, dict[str, int]]:
    return {lang: dict(counts[lang]) for lang in sorted(counts)}


def _sum_of_counts(folder: Path) -> dict[str, dict[str, int]]:
    total: dict[str, Counter] = defaultdict(Counter)
    for file in sorted(folder.iterdir()):
        for lang, counts in read_json(file).items():
            total[lang].update(counts)
    return _plain(total)


def _gather_rejects(work: Path, folder: Path) -> tuple[dict[str, dict[str, int]], dict[str, Examples]]:
    """Puts the tasks' rejects together, one file a reason; returns counts by reason and language, and examples."""
    counts: dict[str, Counter] = defaultdict(Counter)
    examples: dict[str, Examples] = defaultdict(Examples)
    for reason_folder in sorted(work.iterdir()) if work.is_dir() else ():
        reason = reason_folder.name
        with JsonLinesWriter(folder / f"{reason}.jsonl.gz") as writer:
            for row in _rows_of(reason_folder):
                writer.write(row)
                counts[reason][row["lang"]] += 1
                examples[reason].offer(row)
    return _plain(counts), examples


def _rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.iterdir()):
        yield from iterate_rows(file)


def _check_not_empty(counts: dict[str, Any]) -> None:
    drops = (
        ", ".join(f"{reason} {sum(by_lang.values()):,}" for reason, by_lang in counts["dropped"].items())
        or "none dropped"
    )
    if not counts["train"]:
        raise UserError(
            f"--inputs: no document is left to train on ({drops}); a corpus needs some; give others or loosen the filters"
        )
    if not counts["validation"]:
        raise UserError(
            f"--validation-inputs, --validation-share: no document is held out ({drops}); give others or a larger share"
        )


def _write_page(
    path: Path, config: CorpusConfig, counts: dict[str, Any], shards: Shards, dropped: dict[str, Examples]
) -> None:
    """The page a person reads: counts by language, lengths, and what each reason dropped beside what was kept."""
    import jinja2
    from datatrove.pipeline.filters.base_filter import BaseFilter

    from septet.data import dedup, filters  # noqa: F401 (their classes are found below)

    meanings = {}
    for filter_class in BaseFilter.__subclasses__():
        meanings |= getattr(filter_class, "reasons", {})
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("corpus.html.j2").read_text(encoding="utf-8")
    )
    buckets = sorted({bucket for lengths in shards.lengths.values() for bucket in lengths})
    page = template.render(
        config=config,
        languages=sorted(counts["read"]),
        counts=counts,
        buckets=range(buckets[0], buckets[-1] + 1),
        lengths=shards.lengths,
        meanings=meanings,
        kept={lang: shards.examples[lang].rows() for lang in sorted(shards.examples)},
        dropped={reason: dropped[reason].rows() for reason in sorted(dropped)},
    )
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_cli(run, CorpusConfig)
