"""How right the corpus is on real text with planted truth: near duplicates, contamination, languages, personal data.

    python benchmarks/corpus_truth.py --data ../shared/data

- Near duplicates, per language: real documents of `pretrain/`, with copies in which between none and 15 % of the words
  (Chinese: characters) were replaced by others of the document, shuffled. The truth is brute force: every pair of
  documents that shares a shingle is compared by the exact Jaccard similarity of sets of word tuples, in order, and a
  document goes if an earlier one that stays is 0.8 alike. With `--peer`, the same for datatrove's MinHash (5-grams of its
  own words, 14 bands of 8 hashes), which has no threshold, only a probability.
- Contamination: 14 words (21 characters) of each row that is long enough of the evaluation sets are put into a real
  document; counted are the documents found, and the untouched documents that were dropped, which are shown.
- Languages: sentences of some 100 characters cut from the real sets, by their known language; LibreOffice's help is left
  out, since its French and Chinese are in part untranslated English. For "other" give a folder
  of text files by `--other`.
- Personal data: what is masked in all of the real text, by kind and language, with examples; a person must judge them.
  Recall on planted data is measured by tests/test_pii.py.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from septet.data.documents import iterate_rows

LANGUAGES = ("en", "fr", "zh")
EVALUATION = {
    "en": ("ag_news_en", "trec6_en", "sst2_en", "subjqa_en", "synopsis_en"),
    "fr": ("piaf_fr", "synopsis_fr"),
    "zh": ("drcd_zh", "csl_category_zh", "thucnews_zh"),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real sets")
    parser.add_argument("--documents", type=int, default=2000, help="real documents a language, before the copies")
    parser.add_argument("--other", type=Path, help="folder of .txt files, one a language, a sentence a line")
    parser.add_argument("--peer", action="store_true", help="also run datatrove's MinHash (pip install spacy)")
    parser.add_argument("--output", type=Path, default=Path("build/corpus_truth"), help="folder for corpus_truth.json")
    return parser.parse_args(arguments)


def edited(text: str, lang: str, share: float, rng: random.Random) -> str:
    pieces = list(text) if lang == "zh" else text.split(" ")
    for place in range(len(pieces)):
        if rng.random() < share:
            pieces[place] = pieces[rng.randrange(len(pieces))]
    return ("" if lang == "zh" else " ").join(pieces)


def shingles(text: str) -> set[tuple[int, ...]]:
    """The definition of `septet.data.dedup`, by sets of tuples instead of hashes of runs."""
    from septet.data.dedup import SHINGLE_CHARACTERS, SHINGLE_WORDS
    from septet.data.words import words_of

    words = words_of(text)
    size = SHINGLE_CHARACTERS if words.are_characters else SHINGLE_WORDS
    values = words.hashes.tolist()
    return {tuple(values[i : i + size]) for i in range(max(1, len(values) - size + 1))}


def brute_force(texts: list[str], threshold: float) -> set[int]:
    """What goes when each document is compared with every earlier one that stays."""
    holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
    sizes, goes = [], set()
    for number, text in enumerate(texts):
        mine = shingles(text)
        sizes.append(len(mine))
        shared = Counter(other for shingle in mine for other in holders.get(shingle, ()))
        if any(count / (len(mine) + sizes[other] - count) >= threshold for other, count in shared.items()):
            goes.add(number)
        else:
            for shingle in mine:
                holders[shingle].append(number)
    return goes


def ours(texts: list[str], threshold: float, folder: Path) -> set[int]:
    import numpy as np

    from septet.data import dedup, store
    from septet.data.words import words_of

    writer = store.Writer(folder / "documents", 0)
    for number, text in enumerate(texts):
        values = dedup.shingles(words_of(text))
        row = {"id": str(number), "text": text, "source": "", "lang": ""}
        writer.add(row, "train", dedup.text_digest(text), dedup.signature(values), dedup.sketch(values))
    writer.close()
    list(dedup.Exact(folder / "documents", folder / "exact")(None))
    for band in range(dedup.BANDS):
        list(dedup.Candidates(folder / "documents", folder / "exact", folder / "pairs")(None, band, dedup.BANDS))
    list(dedup.Similar(folder / "documents", folder / "pairs", folder / "similar", threshold)(None, 0, 1))
    exact = np.load(folder / "exact" / "exact.npy")
    goes, _ = dedup.resolve(store.Store(folder / "documents"), exact, [folder / "similar" / "00000.npy"])
    return set(np.flatnonzero(goes).tolist())


def datatroves(texts: list[str], lang: str, folder: Path) -> set[int]:
    from datatrove.data import Document
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig

    settings = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    kept: list[int] = []

    def collect(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for document in data:
            kept.append(int(document.id))
            yield document

    code = {"en": "eng", "fr": "fra", "zh": "cmn"}[lang]
    stages = [
        [documents, MinhashDedupSignature(str(folder / "signatures"), settings, language=code)],
        [MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=settings)],
        [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), settings)],
        [documents, MinhashDedupFilter(str(folder / "remove")), collect],
    ]
    for number, pipeline in enumerate(stages):
        tasks = settings.num_buckets if number == 1 else 1
        executor = LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=str(folder / f"log{number}"))
        for rank in range(tasks):
            executor._run_for_rank(rank, local_rank=1)
    return set(range(len(texts))) - set(kept)


def near_duplicates(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for lang in LANGUAGES:
        rng = random.Random(lang)
        texts = [row["text"] for row in iterate_rows(options.data / f"pretrain/{lang}.jsonl.gz")]
        texts = rng.sample(texts, min(options.documents, len(texts)))
        for text in list(texts):
            for _ in range(rng.choice((0, 0, 1, 2))):
                texts.append(edited(text, lang, rng.choice((0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.15)), rng))
        rng.shuffle(texts)
        truth = brute_force(texts, 0.8)
        row: dict[str, Any] = {"lang": lang, "documents": len(texts), "near_duplicates": len(truth)}
        systems = {"septet": lambda folder, texts=texts: ours(texts, 0.8, folder)}
        if options.peer:
            systems["datatrove"] = lambda folder, texts=texts, lang=lang: datatroves(texts, lang, folder)
        for name, system in systems.items():
            folder = Path(tempfile.mkdtemp())
            started = time.perf_counter()
            dropped = system(folder)
            seconds = time.perf_counter() - started
            shutil.rmtree(folder)
            right = len(dropped & truth)
            row[name] = {"recall": right / len(truth), "precision": right / len(dropped), "seconds": seconds}
        found.append(row)
        print(json.dumps(row))
    return found


def contamination(options: argparse.Namespace) -> list[dict[str, Any]]:
    from datatrove.data import Document

    from septet.data.decontaminate import (
        CHARACTERS,
        LEAST_CHARACTERS,
        LEAST_WORDS,
        WORDS,
        Decontaminate,
        build_index,
        evaluation_files,
        texts_of,
    )
    from septet.data.words import words_of

    found = []
    for lang in LANGUAGES:
        rng = random.Random(lang)
        files = evaluation_files([str(options.data / name) for name in EVALUATION[lang]])
        index = Path(tempfile.mkdtemp())
        build_index(files, index)
        step = Decontaminate(index)
        clean = [row["text"] for row in iterate_rows(options.data / f"pretrain/{lang}.jsonl.gz")]
        untouched = [text for text in clean if step.items_in(words_of(text))]
        clean = [text for text in clean if text not in set(untouched)]
        planted = right = 0
        for file in files:
            for row in iterate_rows(file):
                text = max((text for _, text in texts_of(row)), key=len)
                words = words_of(text)
                if len(words.hashes) < (LEAST_CHARACTERS if words.are_characters else LEAST_WORDS):
                    continue
                if lang == "zh":
                    start = rng.randrange(max(1, len(text) - 3 * CHARACTERS))
                    piece = text if len(text) < 4 * CHARACTERS else text[start : start + 3 * CHARACTERS]
                else:
                    pieces = text.split(" ")
                    start = rng.randrange(max(1, len(pieces) - WORDS))
                    piece = text if len(pieces) < 2 * WORDS else " ".join(pieces[start : start + WORDS + 1])
                if len(words_of(piece).hashes) < min(len(words.hashes), CHARACTERS if lang == "zh" else WORDS):
                    continue
                host = rng.choice(clean)
                place = rng.randrange(len(host))
                planted += 1
                right += step.filter(Document(f"{host[:place]} {piece} {host[place:]}", "d")) is not True
        shutil.rmtree(index)
        found.append({"lang": lang, "planted": planted, "found": right, "documents": len(clean) + len(untouched),
                      "untouched_dropped": len(untouched), "examples": [text[:200] for text in untouched[:5]]})  # fmt: skip
        print(json.dumps(found[-1], ensure_ascii=False))
    return found


def sentences(text: str, length: int = 100) -> list[str]:
    """Pieces of some `length` characters that begin and end at spaces, where there are any."""
    pieces, start = [], 0
    while start + length <= len(text):
        end = text.rfind(" ", start + length // 2, start + length)
        end = end if end > 0 else start + length
        pieces.append(text[start:end])
        start = end + 1
    return pieces


def languages(options: argparse.Namespace) -> dict[str, Any]:
    from septet.data.language import identify

    sources = {
        "en": ["pretrain/en", "ag_news_en/train", "sst2_en/train", "subjqa_en/train"],
        "fr": ["pretrain/fr", "piaf_fr/train"],
        "zh": ["pretrain/zh", "csl_category_zh/train", "drcd_zh/train"],
    }
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for lang, names in sources.items():
        for name in names:
            rng, texts = random.Random(name), []
            for row in iterate_rows(options.data / f"{name}.jsonl.gz"):
                if "libreoffice" in row.get("source", ""):
                    continue
                texts += sentences(str(row.get("text") or row.get("context") or row.get("sentence")))
            for text in rng.sample(texts, min(2000, len(texts))):
                table[lang][identify(text).lang] += 1
    if options.other:
        for file in sorted(options.other.glob("*.txt")):
            lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
            for text in random.Random(file.name).sample(lines, min(1000, len(lines))):
                table["other"][identify(text).lang] += 1
    for lang, counts in table.items():
        print(lang, dict(counts), f"{counts[lang] / counts.total():.4f}")
    return {lang: dict(counts) for lang, counts in table.items()}


def personal_data(options: argparse.Namespace) -> dict[str, Any]:
    from septet.data.pii import mask

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for lang in LANGUAGES:
        for row in iterate_rows(options.data / f"pretrain/{lang}.jsonl.gz"):
            masked, found = mask(row["text"], lang)
            counts[lang].update(documents=1, documents_masked=masked != row["text"], **found)
        print(lang, dict(counts[lang]))
    return {lang: dict(found) for lang, found in counts.items()}


def main(options: argparse.Namespace) -> Path:
    report = {
        "near_duplicates": near_duplicates(options),
        "contamination": contamination(options),
        "languages": languages(options),
        "personal_data": personal_data(options),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    place = options.output / "corpus_truth.json"
    place.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(place)
    return place


if __name__ == "__main__":
    main(parse())
