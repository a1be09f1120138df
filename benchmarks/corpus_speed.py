"""How fast `septet corpus` is, step by step, and how much memory it takes, on real text grown to any size.

    python benchmarks/corpus_speed.py --data TEXT_FOLDER --megabytes 1000

The text of `--data` (en.jsonl.gz, fr.jsonl.gz, zh.jsonl.gz) is read again and again until the size is reached. Of the
copies 10 % are exact; 20 % have one word in 200 replaced, and are near duplicates; of the rest one word in six, drawn
from the same document, which leaves a Jaccard similarity near 0.25 and so nothing to drop. Chinese is edited by characters.
Files hold some 8 MB of text each, uncompressed; the time to make them does not count.

Three runs of the corpus with its default options, each in a fresh process: a tenth of the size with one worker, and the
whole with one and with two. Reported are

- MB/s per core of each step: its time as datatrove counts it, over the bytes read by that stage (10^6 bytes of UTF-8);
- the goal's sum, clean + identify + exact and near de-duplication, with what the filters, masking and writing add;
- wall-clock MB/s of the whole with one and with two workers, start-up and fingerprints of the inputs included, beside
  what the same two cores give a loop of pure arithmetic in two processes: on hyper-threads no program gets twice;
- the peak resident memory of all processes together, sampled every 0.1 s, at both sizes;
- with `--peer`, datatrove's own filters and MinHash steps over a part of the same files, in the same run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "fr", "zh")
FILE_BYTES = 8_000_000
GOAL_STEPS = {
    "documents": ("read", "clean", "identify language", "sign and keep"),
    "exact": None,
    "candidates": None,
    "similar": None,
    "resolve": None,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pretrain"), help="folder of the real text")
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the larger corpus, in 10^6 bytes")
    parser.add_argument("--output", type=Path, default=Path("build/corpus_speed"), help="folder for corpus_speed.json")
    parser.add_argument("--quality", default="light", help="the corpus' --quality")
    parser.add_argument(
        "--peer", action="store_true", help="also run datatrove's own steps (pip install spacy jieba orjson)"
    )
    parser.add_argument("--peer-megabytes", type=float, default=24, help="how much text the peer gets")
    parser.add_argument(
        "--child", nargs=4, help=argparse.SUPPRESS
    )  # the fresh process: inputs, output, workers, quality
    parser.add_argument("--peer-child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def edited(text: str, lang: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        return text
    share = 1 / 200 if kind < 0.3 else 1 / 6
    pieces = list(text) if lang == "zh" else text.split(" ")
    for place in range(len(pieces)):
        if rng.random() < share:
            pieces[place] = pieces[rng.randrange(len(pieces))]
    return ("" if lang == "zh" else " ").join(pieces)


def grow(data: Path, folder: Path, megabytes: float) -> int:
    """Writes the text, edited, in files of one language each; returns its bytes."""
    from septet.data.documents import iterate_rows

    texts = {}
    for lang in LANGUAGES:
        texts[lang] = [row["text"] for row in iterate_rows(data / f"{lang}.jsonl.gz")]
    folder.mkdir(parents=True)
    rng, total, number, repetition = random.Random(0), 0, 0, 0
    while total < megabytes * 1e6:
        for lang in LANGUAGES:
            file, room = None, 0
            for text in texts[lang]:
                if total >= megabytes * 1e6:
                    break
                if room <= 0:
                    if file:
                        file.close()
                    file = open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
                    number, room = number + 1, FILE_BYTES
                changed = edited(text, lang, rng) if repetition else text
                size = len(changed.encode())
                row = {"id": f"{lang}{total}", "text": changed, "source": "grown", "lang": lang}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                room, total = room - size, total + size
            if file:
                file.close()
        repetition += 1
    return total


def make(inputs: str, output: str, workers: int, quality: str) -> dict[str, Any]:
    """Runs the corpus and returns the seconds of its stages and steps, as datatrove's own records have them."""
    from septet.data import corpus

    started = time.perf_counter()
    config = corpus.CorpusConfig((inputs,), Path(output), workers=workers, quality=quality)
    wall: dict[str, float] = {}
    steps: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    work = corpus.prepare(config)
    todo = corpus.stages(config, work)
    with corpus._pool(config, work, todo) as run_stage:
        for stage in todo:
            before = time.perf_counter()
            run_stage(stage)
            wall[stage.name] = time.perf_counter() - before
            for file in (work / "log" / stage.name / "stats").glob("*.json"):
                for step in json.loads(file.read_text()):
                    name = step["name"].rpartition(": ")[2].strip()
                    steps[stage.name][name] += step["time_stats"].get("total", 0.0)
    corpus.run(config)  # nothing is left to do but the output itself
    return {"seconds": time.perf_counter() - started, "stages": wall, "steps": steps}


def resident_bytes(process: Any) -> int:
    import psutil

    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def watched(command: list[str]) -> dict[str, Any]:
    """Runs a command that prints JSON; adds the peak of its and its children's resident memory."""
    import psutil

    peak, done = [0], threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        tree = psutil.Process(process.pid)

        def watch() -> None:
            while not done.wait(0.1):
                try:
                    peak[0] = max(peak[0], resident_bytes(tree))
                except psutil.Error:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        answer = process.communicate()[0]
        done.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return json.loads(answer.strip().split("\n")[-1]) | {"peak_resident_bytes": peak[0]}


def spin(seconds: float) -> int:
    """How many rounds of integer arithmetic one process does in some seconds."""
    rounds, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for k in range(1000):
            rounds += k & 1
    return rounds


def two_cores() -> float:
    """What two processes of pure arithmetic do together, over what one does alone."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(spin, [0.1, 0.1])
        alone = pool.apply(spin, (3.0,))
        return sum(pool.map(spin, [3.0, 3.0])) / alone


def run_peer(inputs: str, output: str) -> dict[str, float]:
    """datatrove's cleaning, C4 and Gopher filters and MinHash, each language with its own tokenizer; seconds by step."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    seconds: dict[str, float] = defaultdict(float)
    for lang, code in (("en", "eng"), ("fr", "fra"), ("zh", "cmn")):
        root, settings = Path(output) / lang, MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
        stages = {
            "clean and filter": [
                JsonlReader(f"{inputs}/{lang}"),
                FTFYFormatter(),
                GopherRepetitionFilter(language=code),
                GopherQualityFilter(language=code),
                C4QualityFilter(language=code, filter_no_terminal_punct=False),
                JsonlWriter(str(root / "kept")),
            ],
            "signatures": [
                JsonlReader(str(root / "kept")),
                MinhashDedupSignature(str(root / "signatures"), settings, language=code),
            ],
            "buckets": [MinhashDedupBuckets(str(root / "signatures"), str(root / "buckets"), config=settings)],
            "clusters": [MinhashDedupCluster(str(root / "buckets"), str(root / "remove"), settings)],
            "drop": [
                JsonlReader(str(root / "kept")),
                MinhashDedupFilter(str(root / "remove")),
                JsonlWriter(str(root / "out")),
            ],
        }
        for name, pipeline in stages.items():
            tasks = settings.num_buckets if name == "buckets" else 1
            executor = LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=str(root / "log" / name))
            started = time.perf_counter()
            for rank in range(tasks):  # not executor.run(), which copies the steps: some hold what cannot be copied
                executor._run_for_rank(rank, local_rank=1)
            seconds[name] += time.perf_counter() - started
    return seconds


def peer(options: argparse.Namespace, inputs: Path) -> dict[str, Any]:
    folder = options.output / "peer"
    total = 0
    for lang in LANGUAGES:
        (folder / "in" / lang).mkdir(parents=True)
        with open(folder / "in" / lang / "part.jsonl", "w", encoding="utf-8") as out:
            taken = 0
            for file in sorted(inputs.glob("*.jsonl")):
                for line in open(file, encoding="utf-8"):  # noqa: SIM115
                    row = json.loads(line)
                    if row["lang"] == lang and taken < options.peer_megabytes * 1e6 / len(LANGUAGES):
                        out.write(line)
                        taken += len(row["text"].encode())
                if taken >= options.peer_megabytes * 1e6 / len(LANGUAGES):
                    break
            total += taken
    command = [sys.executable, __file__, "--peer-child", str(folder / "in"), str(folder / "out")]
    found = watched(command)
    ours = watched([sys.executable, __file__, "--child", str(folder / "in"), str(folder / "ours"), "1", "web"])
    seconds = sum(value for name, value in found.items() if name != "peak_resident_bytes")
    return {"bytes": total, "datatrove": found, "datatrove_seconds": seconds, "septet": ours,
            "ratio": seconds / ours["seconds"]}  # fmt: skip


def main(options: argparse.Namespace) -> Path:
    shutil.rmtree(options.output, ignore_errors=True)
    sizes = {"tenth": options.megabytes / 10, "whole": options.megabytes}
    report: dict[str, Any] = {"two_processes_of_arithmetic": two_cores(), "runs": []}
    for name, megabytes in sizes.items():
        print(f"making {megabytes:,.0f} MB of text", file=sys.stderr, flush=True)
        size = grow(options.data, options.output / name, megabytes)
        for workers in (1,) if name == "tenth" else (1, 2):
            output = options.output / "corpus"
            command = [sys.executable, __file__, "--child", str(options.output / name), str(output), str(workers)]
            found = watched([*command, options.quality])
            counts = json.loads((output / "manifest.json").read_text())["counts"]
            report["runs"].append({"bytes": size, "workers": workers, "read": counts["read"],
                                   "dropped": counts["dropped"], **found})  # fmt: skip
            shutil.rmtree(output)
            print(f"{size / 1e6:,.0f} MB, {workers} worker(s): {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    report |= {
        "quality": options.quality,
        "hardware": f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}",
        "python": platform.python_version(),
    }
    place = options.output / "corpus_speed.json"
    place.write_text(json.dumps(report, indent=2) + "\n")
    if options.peer:
        report["peer"] = peer(options, options.output / "whole")
        place.write_text(json.dumps(report, indent=2) + "\n")
    for name in ("tenth", "whole", "peer"):
        shutil.rmtree(options.output / name, ignore_errors=True)
    show(report)
    print(place)
    return place


def show(report: dict[str, Any]) -> None:
    small, one, two = report["runs"]
    megabytes = one["bytes"] / 1e6
    print(f"\n| step ({megabytes:,.0f} MB, one worker) | seconds | MB/s per core |\n|---|---:|---:|")
    in_goal = 0.0
    for stage, seconds in one["stages"].items():
        if stage != "documents":
            in_goal += seconds if stage in GOAL_STEPS else 0.0
            print(f"| {stage} | {seconds:.1f} | {megabytes / seconds:.1f} |")
            continue
        for step, step_seconds in one["steps"][stage].items():
            in_goal += step_seconds if step in GOAL_STEPS["documents"] else 0.0
            print(f"| {stage}: {step} | {step_seconds:.1f} | {megabytes / max(step_seconds, 1e-9):.1f} |")
    print(
        f"\nread + clean + identify + exact and near de-duplication: {megabytes / in_goal:.2f} MB/s per core (goal 5)"
    )
    for run in (small, one, two):
        print(f"whole, {run['bytes'] / 1e6:,.0f} MB, {run['workers']} worker(s): {run['seconds']:.1f} s, "
              f"{run['bytes'] / 1e6 / run['seconds']:.2f} MB/s, peak {run['peak_resident_bytes'] / 2**30:.2f} GiB")  # fmt: skip
    print(f"two workers over one: {one['seconds'] / two['seconds']:.2f}; two processes of pure arithmetic over one: "
          f"{report['two_processes_of_arithmetic']:.2f}")  # fmt: skip
    if "peer" in report:
        size, found = report["peer"]["bytes"] / 1e6, report["peer"]
        print(f"datatrove's own steps, {size:.0f} MB: {size / found['datatrove_seconds']:.2f} MB/s; Septet's with the same "
              f"filters (web): {size / found['septet']['seconds']:.2f} MB/s, {found['ratio']:.1f} times")  # fmt: skip


if __name__ == "__main__":
    arguments = parse()
    if arguments.child:
        print(json.dumps(make(arguments.child[0], arguments.child[1], int(arguments.child[2]), arguments.child[3])))
    elif arguments.peer_child:
        print(json.dumps(run_peer(*arguments.peer_child)))
    else:
        main(arguments)
