"""Clean, identify, filter, decontaminate and de-duplicate documents into train and validation shards.

The corpus is a list of stages (`stages`), each a list of datatrove steps with a number of tasks. Here they run in
processes of this machine. The same lists run on datatrove's Slurm and Ray executors with the same output: docs/corpus.md.
Each finished task is kept: a run that was stopped goes on with the tasks that are missing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import io
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from septet.data.documents import HUB_PREFIX, expand
from septet.data.errors import UserError, run_cli
from septet.data.manifest import digests_of, finished, read_json, remove_work, work_folder, write_json, writing

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

# Neighbouring files share a task up to this size, and larger ones are read in parts where their kind allows it. No
# option and no matter of the machine: the order of the documents, and with it the bytes that come out, follow from it.
TASK_BYTES = 16_000_000
_MAX_TASKS = 50_000


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    inputs: tuple[str, ...]
    """Files (.jsonl, .json, .parquet, .txt, .warc; .gz, .zst), folders of them, or hub:owner/name[:config][:split]."""
    output: Path = Path("build/corpus")
    """Folder for train/, validation/, rejects/, index.html, README.md (the data card) and manifest.json."""
    validation_inputs: tuple[str, ...] = ()
    """Documents to hold out; without them a share of the inputs is held out."""
    validation_share: float = 0.01
    """Share of the documents to hold out, chosen by a hash of the text; unused with --validation-inputs."""
    text_column: str = "text"
    """Column that holds the text."""
    lang_column: str = "lang"
    """Column that holds the language of a document; where it is missing or empty, the language is identified."""
    lang: str | None = None
    """Language of all inputs."""
    languages: tuple[str, ...] = ("en", "fr", "zh")
    """Languages to keep."""
    language_score: float = 0.65
    """Least score at which an identified language counts (FineWeb's threshold)."""
    min_bytes: int = 100
    """Shortest document to keep, in bytes of UTF-8 (100: some 17 English words, or 33 Chinese characters)."""
    max_bytes: int = 5_000_000
    """Longest document to keep, in bytes of UTF-8."""
    quality: Literal["web", "light", "none"] = "light"
    """Heuristics: `light` drops damage and repetition, `web` also what web pages are full of, `none` nothing."""
    near_duplicates: float = 0.8
    """Jaccard similarity from which a document counts as a copy of an earlier one, 0.7 to 1; 0: exact copies only."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets whose texts must not be in the corpus: files of rows, or folders with validation and test parts."""
    mask_pii: bool = True
    """Put <EMAIL>, <PHONE_NUMBER>, <IP_ADDRESS>, <NATIONAL_ID>, <CREDIT_CARD> in place of personal data."""
    licenses: dict[str, str] = dataclasses.field(default_factory=dict)
    """Licence of a source, for the data card: --licenses SOURCE LICENCE ..."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """What to do with a row that cannot be read: stop with its place, or count it and go on."""
    shard_megabytes: float = 256.0
    """Text in one shard, in 10^6 bytes of UTF-8."""
    workers: int = 0
    """Processes; 0: one a core. Changes no byte."""
    overwrite: bool = False
    """Make the output again if it holds something else."""


@dataclasses.dataclass
class Stage:
    """Steps that run as `tasks` independent tasks, after all tasks of the stage before."""

    name: str
    tasks: int
    pipeline: list[Any]

    def local_executor(self, work: Path) -> PipelineExecutor:
        from datatrove.executor.local import LocalPipelineExecutor

        return LocalPipelineExecutor(self.pipeline, tasks=self.tasks, logging_dir=str(work / "log" / self.name))


def run(config: CorpusConfig) -> Path:
    """Makes the corpus; see `CorpusConfig`.

    Raises:
        UserError: an input that cannot be used, nothing left after the filters, or nothing held out.
    """
    with _at_work(config) as (work, digests, started):
        if work is not None:
            todo = stages(config, work)
            with _pool(config, work, todo) as run_stage:
                for stage in todo:
                    run_stage(stage)
            _finish(config, work, todo, digests, started)
            remove_work(work)
    return config.output


def prepare(config: CorpusConfig) -> Path | None:
    """Checks the inputs and shares them out among tasks.

    Returns:
        The work folder for `stages`, or None if the output is up to date. When all tasks are done, `run` makes the output.
    """
    with _at_work(config) as (work, _, _):
        return work


@contextlib.contextmanager
def _at_work(config: CorpusConfig) -> Iterator[tuple[Path | None, dict[str, dict[str, str]], float]]:
    """The work folder, or None if the output is up to date; the inputs' digests; and when work began."""
    from septet.data.language import IdentifyLanguage

    _check(config)
    paths = {f"inputs[{i}]": name for i, name in enumerate(config.inputs)}
    paths |= {f"validation_inputs[{i}]": name for i, name in enumerate(config.validation_inputs)}
    paths |= {f"decontaminate[{i}]": name for i, name in enumerate(config.decontaminate)}
    paths = {key: name for key, name in paths.items() if not name.startswith(HUB_PREFIX)}
    if finished(config.output, "corpus", config, paths, config.overwrite):
        yield None, {}, 0.0
        return
    IdentifyLanguage(config.languages, config.language_score)  # knows whether it can tell them
    started = time.time()
    digests = digests_of(paths)
    with work_folder(config.output, "corpus", config, digests) as (work, seconds_before):
        if not (work / "tasks.json").is_file():
            _share_out(config, work)
        yield work, digests, started - seconds_before


def _check(config: CorpusConfig) -> None:
    if not config.inputs:
        raise UserError("--inputs: is empty; a corpus needs documents; give files, folders or hub:owner/name")
    if not config.validation_inputs and not 0 < config.validation_share < 1:
        raise UserError(
            f"--validation-share {config.validation_share}: must lie between 0 and 1; give 0.01, or --validation-inputs"
        )
    if config.near_duplicates and not 0.7 <= config.near_duplicates <= 1:
        raise UserError(
            f"--near-duplicates {config.near_duplicates}: must lie between 0.7 and 1, where pairs are found reliably; "
            "give 0.8, or 0 to drop exact copies only"
        )
    if not 0 < config.shard_megabytes < 1e9:
        raise UserError(f"--shard-megabytes {config.shard_megabytes}: must lie between 0 and 10^9; give 256")
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 1 or more, or 0 for one a core; give 0")
    if config.lang is not None and config.lang not in config.languages:
        raise UserError(
            f"--lang {config.lang}: is not among the languages to keep ({', '.join(config.languages)}); every document "
            "would be dropped; add it to --languages"
        )
    for name in (*config.validation_inputs, *config.inputs):
        if Path(name).is_dir() and config.output.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(
                f"--output {config.output}: lies in the input {name} and would be read as one; choose another"
            )
    expand((*config.validation_inputs, *config.inputs))


def _share_out(config: CorpusConfig, work: Path) -> None:
    """Writes tasks.json, the parts of files that each task reads, and the index of the evaluation sets."""
    from septet.data.decontaminate import build_index, evaluation_files
    from septet.data.documents import parts_of
    from septet.data.hub import resolve

    if config.decontaminate:
        build_index(evaluation_files(config.decontaminate), work / "evaluation")
    inputs = [(name, "validation") for name in config.validation_inputs] + [(name, "train") for name in config.inputs]
    files = [(name, split, _source_of(given)) for given, split in inputs for name in expand([given])]
    sizes = {name: Path(name).stat().st_size for name, _, _ in files if not name.startswith(HUB_PREFIX)}
    task_bytes = max(TASK_BYTES, sum(sizes.values()) // _MAX_TASKS)
    tasks: list[list[tuple[str, str, str, int, int]]] = [[]]
    room, revisions = task_bytes, {}
    for name, split, source in files:
        if name.startswith(HUB_PREFIX):
            pinned = resolve(name)
            revisions[name] = pinned.rpartition("@")[2]
            parts = parts_of(pinned, task_bytes)
            tasks += [*([(pinned, split, source, part, parts)] for part in range(parts)), []]
            room = task_bytes
            continue
        parts = parts_of(name, task_bytes)
        for part in range(parts):
            if sizes[name] / parts > room and tasks[-1]:
                tasks.append([])
                room = task_bytes
            tasks[-1].append((name, split, source, part, parts))
            room -= sizes[name] / parts
    tasks = [task for task in tasks if task]
    if len(tasks) >= 100_000:  # their names have five digits
        raise UserError(f"--inputs: make {len(tasks):,} tasks; a corpus has fewer than 100,000; make it of several")
    write_json(work / "tasks.json", {"tasks": tasks, "revisions": revisions})


def _source_of(given: str) -> str:
    """The source of rows that name none: the input as it was given, so that a folder of a thousand texts is one source."""
    return given if given.startswith(HUB_PREFIX) else Path(given).resolve().name.split(".")[0]


def stages(config: CorpusConfig, work: Path) -> list[Stage]:
    """The stages over the work folder that `prepare` gives, in order."""
    from datatrove.pipeline.filters.base_filter import BaseFilter

    from septet.data import clean, dedup, filters, steps
    from septet.data.decontaminate import Decontaminate
    from septet.data.language import IdentifyLanguage
    from septet.data.pii import MaskPII

    rejects = steps.Rejects(work / "rejects", steps.Tally())
    documents = [
        clean.Clean(),
        IdentifyLanguage(config.languages, config.language_score),
        *filters.quality_filters(config.quality, config.min_bytes, config.max_bytes),
        *([Decontaminate(work / "evaluation")] if config.decontaminate else []),
        *([MaskPII()] if config.mask_pii else []),
    ]
    for step in documents:
        if isinstance(step, BaseFilter):
            step.exclusion_writer = rejects
    options = {name: getattr(config, name) for name in ("text_column", "lang_column", "lang", "bad_rows")}
    hold_out_share = 0.0 if config.validation_inputs else config.validation_share
    keep = steps.Keep(work, hold_out_share, config.near_duplicates, rejects)
    store, exact, pairs = work / "documents", work / "exact", work / "pairs"
    tasks = len(read_json(work / "tasks.json")["tasks"])
    near = [
        Stage("candidates", dedup.BANDS, [dedup.Candidates(store, exact, pairs)]),
        Stage("similar", tasks, [dedup.Similar(store, pairs, work / "similar", config.near_duplicates)]),
    ]
    return [
        Stage("documents", tasks, [steps.Read(work, options, rejects), *documents, keep]),
        Stage("exact", 1, [dedup.Exact(store, exact)]),
        *(near if config.near_duplicates else []),
        Stage("resolve", 1, [steps.Resolve(work, max(1, int(config.shard_megabytes * 1e6)))]),
        Stage("shards", tasks, [steps.WriteShards(work)]),
    ]


@contextlib.contextmanager
def _pool(config: CorpusConfig, work: Path, todo: list[Stage]) -> Iterator[Any]:
    """A function that runs a stage: in this process if one worker is enough, else in a pool that all stages share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(config.workers or cores, max(stage.tasks for stage in todo))
    if workers == 1:
        counter = multiprocessing.Value("q", 0)
        _begin_worker(counter)

        def run_here(stage: Stage) -> None:
            executor = stage.local_executor(work)
            with _bar(stage, executor, counter) as advance:
                for task in executor.get_incomplete_ranks():
                    _run_task(copy.deepcopy(executor), task)
                    advance()

        yield run_here
        return
    # Not LocalPipelineExecutor.run: its pool waits for ever if a worker is killed (by lack of memory, say).
    context = multiprocessing.get_context("forkserver")
    counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_begin_worker, initargs=(counter, True)
    ) as pool:

        def run_in_pool(stage: Stage) -> None:
            executor = stage.local_executor(work)
            with _bar(stage, executor, counter) as advance:
                runs = [pool.submit(_run_task, executor, task) for task in executor.get_incomplete_ranks()]
                for future in concurrent.futures.as_completed(runs):
                    future.result()
                    advance()

        try:
            yield run_in_pool
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # or the message would wait until the other files are through
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UserError(
                    f"{config.output}: a worker was killed, perhaps for lack of memory; what was finished is kept; free "
                    "some memory, or take fewer --workers, and run the same command again (a script that calls this needs the guard "
                    'if __name__ == "__main__")'
                ) from error
            raise


@contextlib.contextmanager
def _bar(stage: Stage, executor: PipelineExecutor, counter: Any) -> Iterator[Any]:
    """A progress bar over a stage's tasks, which tells the documents read as well; gives a function to call after each."""
    from tqdm import tqdm

    done = stage.tasks - len(executor.get_incomplete_ranks())
    stop = threading.Event()
    with tqdm(total=stage.tasks, initial=done, desc=f"corpus: {stage.name}", unit=" tasks", disable=None) as bar:

        def watch() -> None:
            while not stop.wait(1):
                bar.set_postfix_str(f"{counter.value:,} documents read")

        if stage.name == "documents" and not bar.disable:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield bar.update
        finally:
            stop.set()


def _begin_worker(counter: Any, end_with_parent: bool = False) -> None:
    from septet.data.steps import Progress

    Progress.counter = counter

    def watch() -> None:  # left to itself, a worker would wait for work for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    if end_with_parent:
        threading.Thread(target=watch, daemon=True).start()


def _run_task(executor: PipelineExecutor, task: int) -> None:
    """Runs one task of a datatrove pipeline. Its log goes into the executor's folder alone, not to the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        executor._run_for_rank(task, local_rank=1)


def _finish(
    config: CorpusConfig, work: Path, done: list[Stage], digests: dict[str, dict[str, str]], started: float
) -> None:
    """Makes the output of what the stages left in the work folder."""
    from septet.data import decontaminate, pages
    from septet.data.steps import Tally, gather_rejects

    kept = read_json(work / "resolved" / "kept.json")
    tally, duplicates = Tally.total(work / "tallies"), Tally.total(work / "tallies_of_duplicates")
    for reason, by_lang in duplicates.dropped.items():
        tally.dropped[reason].update(by_lang)
    tally.examples.update(duplicates.examples)
    with writing(config.output, "corpus", config, {}, digests, started) as out:
        out.counts.update(
            read=_sorted(tally.read),
            dropped=_sorted(tally.dropped),
            **{split: _by_lang(kept["counts"][split]) for split in ("train", "validation")},
            sources={split: _sorted(kept["counts"][split]) for split in ("train", "validation")},
            masked=_sorted({lang: kinds for lang, kinds in tally.masked.items() if kinds}),
            unreadable_rows=dict(sorted(tally.unreadable.items())),
            documents_with_repeated_ids=kept["repeated_ids"],
            revisions=read_json(work / "tasks.json")["revisions"],
        )
        _check_not_empty(out.counts)
        if config.decontaminate:
            found = decontaminate.report(work / "evaluation", tally.contaminated, tally.contaminated_documents)
            write_json(out.path / "decontamination.json", found)
            out.counts["decontaminated"] = found
        gather_rejects(work / "rejects", out.path / "rejects")
        shutil.rmtree(work / "log" / "shards", ignore_errors=True)  # if this fails, the shards are written again
        for split in ("train", "validation"):
            os.rename(work / "out" / split, out.path / split)
        examples = {reason: [row for _, row in chosen.pairs()] for reason, chosen in sorted(tally.examples.items())}
        meanings = _meanings(done)
        pages.write_corpus_page(out.path / "index.html", config, out.counts, kept, examples, meanings)
        pages.write_corpus_card(out.path / "README.md", config, out.counts, digests, meanings)
    documents = {
        split: sum(row["documents"] for row in out.counts[split].values()) for split in ("train", "validation")
    }
    dropped = sum(sum(row.values()) for row in out.counts["dropped"].values())
    print(
        f"corpus: {documents['train']:,} documents for training, {documents['validation']:,} held out, {dropped:,} dropped; "
        f"{config.output}/index.html",
        flush=True,
    )


def _meanings(done: list[Stage]) -> dict[str, str]:
    """What each reason for dropping a document means: the filters say it themselves, with their numbers."""
    from septet.data import dedup

    found = dict(dedup.REASONS)
    for step in done[0].pipeline:
        found |= getattr(step, "reasons", {})
    return found


def _sorted(counts: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {key: dict(sorted(counts[key].items())) for key in sorted(counts)}


def _by_lang(by_source: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter] = defaultdict(Counter)
    for name, counts in by_source.items():
        total[name.split("/")[0]].update(counts)
    return _sorted(total)


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


if __name__ == "__main__":
    run_cli(run, CorpusConfig)
