"""Make questions of plain text, for a model to learn looking for a span before it sees real questions.

    septet cloze --inputs build/corpus/train/00000.jsonl.gz --output build/cloze
    septet finetune qa --base runs/pretrain/final --data build/cloze --output runs/cloze
    septet finetune qa --base runs/cloze/final --data SET --output runs/qa

A span that a passage has in two sentences is hidden in one of them, which becomes the question; the rest of the passage is
the context, and the span's places there are the answers. (Recurring span selection: Ram et al. 2021, "Few-Shot Question
Answering by Pretraining Span Selection"; cloze questions of passages: Dhingra et al. 2018, "Simple and Effective
Semi-Supervised Question Answering".) Spans that many passages have are no answers to anything and are left out.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, writing

HIDDEN = "___"
MAX_CHARACTERS = {"zh": 400}  # of a passage; of other languages:
MAX_CHARACTERS_ELSEWHERE = 900
MAX_SHARE = 0.002  # of the passages that may have a span
CHINESE = re.compile(r"[\u3400-\u9fff]")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
WORDS = re.compile(rf"{WORD.pattern}(?: {WORD.pattern})*")
FINAL = ".!?。！？… "


@dataclass(frozen=True)
class ClozeConfig:
    inputs: tuple[str, ...] = ("build/corpus/train/00000.jsonl.gz",)
    """documents: what `septet corpus` wrote, or any file or hub: set that it reads"""
    text_column: str = "text"
    """column with the text"""
    lang: str | None = None
    """language of documents without a `lang` column"""
    output: Path = Path("build/cloze")
    """folder for train.jsonl.gz and validation.jsonl.gz"""
    questions: int = 20_000
    """at most so many, the same number of each language"""
    validation: int = 200
    """held out of them"""
    seed: int = 0
    """of the choice of passages and spans"""
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: ClozeConfig) -> Path:
    """Writes the set; returns its folder.

    Raises:
        UserError: inputs that cannot be read, or text in which nothing recurs.
    """
    from tqdm import tqdm

    from septet.data.documents import read_documents, write_jsonl

    local = [name for name in config.inputs if not name.startswith("hub:")]
    inputs = {f"inputs[{number}]": name for number, name in enumerate(local)}
    if finished(config.output, "cloze", config, inputs, config.overwrite):
        return config.output
    draw = random.Random(config.seed)
    passages: dict[str, list[list[str]]] = {}
    for name in config.inputs:
        documents = read_documents(name, config.text_column, lang=config.lang)
        for document in tqdm(documents, desc="cloze", unit=" documents"):
            passages.setdefault(document["lang"], []).extend(passages_of(document["text"], document["lang"]))
    rows: list[dict[str, Any]] = []
    for lang, found in sorted(passages.items()):
        draw.shuffle(found)
        rows += questions_of(found, lang, config.questions // len(passages), draw)
    draw.shuffle(rows)
    if len(rows) <= config.validation:
        raise UserError(
            f"{', '.join(config.inputs)}: {len(rows)} questions could be made, more than --validation "
            f"{config.validation} are needed; give more text, or hold out fewer"
        )
    with writing(config.output, "cloze", config, inputs) as out:
        for split, part in (("validation", rows[: config.validation]), ("train", rows[config.validation :])):
            write_jsonl(out.path / f"{split}.jsonl.gz", part)
            out.counts[split] = dict(Counter(row["lang"] for row in part))
    print(f"cloze: {len(rows):,} questions ({', '.join(sorted(passages))}); {config.output}", flush=True)
    return config.output


def passages_of(text: str, lang: str) -> Iterator[list[str]]:
    """Runs of whole sentences of up to `MAX_CHARACTERS`."""
    from septet.tasks.harness.metrics.tokens import sentences

    passage: list[str] = []
    limit = MAX_CHARACTERS.get(lang, MAX_CHARACTERS_ELSEWHERE)
    for sentence in sentences(text):
        if passage and sum(map(len, passage)) + len(sentence) > limit:
            yield passage
            passage = []
        if len(sentence) <= limit // 2:
            passage.append(" ".join(sentence.split()))
    if passage:
        yield passage


def questions_of(
    passages: Sequence[Sequence[str]], lang: str, most: int, draw: random.Random
) -> Iterator[dict[str, Any]]:
    """At most one question a passage, in SQuAD's columns."""
    recurring = [recurring_spans(passage, lang) for passage in passages]
    known = Counter(span for spans in recurring for span in spans)
    limit, made = max(2, round(MAX_SHARE * len(passages))), 0
    for number, (passage, spans) in enumerate(zip(passages, recurring, strict=True)):
        rare = sorted(span for span in spans if known[span] <= limit)
        if made == most:
            return
        if rare:
            made += 1
            yield question(passage, spans[draw.choice(rare)], lang, f"{lang}-{number}", draw)


Places = dict[int, list[tuple[int, int]]]  # number of a sentence -> (start, end) in it, none within another


def recurring_spans(passage: Sequence[str], lang: str) -> dict[str, Places]:
    """Spans (lower case) that stand in two sentences or more, and where; none that stands only within a longer one."""
    found: dict[str, Places] = {}
    lengths = range(8, 1, -1) if lang == "zh" else range(4, 0, -1)
    units = [[m.span() for m in (CHINESE if lang == "zh" else WORD).finditer(sentence)] for sentence in passage]
    for length in lengths:
        places: dict[str, Places] = {}
        for number, (sentence, spans) in enumerate(zip(passage, units, strict=True)):
            for first in range(len(spans) - length + 1):
                start, end = spans[first][0], spans[first + length - 1][1]
                text = sentence[start:end]
                if (lang == "zh" and len(text) == length) or (lang != "zh" and WORDS.fullmatch(text)):
                    there = places.setdefault(text.lower(), {}).setdefault(number, [])
                    if not there or start >= there[-1][1]:
                        there.append((start, end))
        for span, where in places.items():
            whole = not any(span in longer and set(where) <= set(found[longer]) for longer in found)
            if len(where) > 1 and len(span) > (1 if lang == "zh" else 3) and whole:
                found[span] = where
    return found


def question(passage: Sequence[str], places: Places, lang: str, name: str, draw: random.Random) -> dict[str, Any]:
    """The row in which one of the sentences with a span asks for it."""
    asking = draw.choice(sorted(places))
    pieces, done = [], 0
    for start, end in places[asking]:
        pieces += [passage[asking][done:start], HIDDEN]
        done = end
    asked = "".join([*pieces, passage[asking][done:]]).rstrip(FINAL) + ("？" if lang == "zh" else " ?")
    joint, context, texts, starts = "" if lang == "zh" else " ", "", [], []
    for number, sentence in enumerate(passage):
        if number == asking:
            continue
        context += joint if context else ""
        for start, end in places.get(number, ()):
            texts.append(sentence[start:end])
            starts.append(len(context) + start)
        context += sentence
    answers = {"text": texts, "answer_start": starts}
    return {"id": name, "question": asked, "context": context, "answers": answers, "lang": lang}


if __name__ == "__main__":
    run_cli(run, ClozeConfig)
