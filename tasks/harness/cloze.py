"""Make questions of plain text, for a model to learn looking for a span before it sees real questions.

    septet cloze --inputs build/corpus/train/00000.jsonl.gz --output build/cloze
    septet finetune qa --base runs/pretrain/final --data build/cloze --output runs/cloze
    septet finetune qa --base runs/cloze/final --data SET --output runs/qa

A span is taken out of a sentence. What stands around it, thinned out and often turned round, is the question; the sentence
stays in its passage, which is the context. So a model learns to find the place that a question's words come from, and to
answer with what the question lacks. (Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation", whose noise
is of the same kind.)
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, writing

HIDDEN = "___"
MAX_CHARACTERS = {"zh": 400}  # of a passage; of other languages:
MAX_CHARACTERS_ELSEWHERE = 900
PASSAGES = 6  # of one document at most, or else novels would ask most of the questions
WORD = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")
UNIT = {"zh": re.compile(r"[\u3400-\u9fff]|[A-Za-z]+|\d+")}  # of spans and runs; of other languages: words
CUT = re.compile(r"[,;:.!?…](?:\s|$)|[()«»“”\"，。；：！？、（）《》「」]")  # what no answer has within
MIN_UNITS = (7, 10)  # of a sentence that is asked about; here and below: words, and what Chinese has instead
LENGTHS = ((1, 5), (2, 8))  # of an answer
TRIES = 8  # spans drawn, one of which is taken
REACH = 18  # units before and after the span that may come into the question
KEPT = 0.65  # of their runs


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
    kept: dict[str, list[str]] = {}  # of each language a sample of as many documents as there may be questions
    seen: Counter[str] = Counter()
    for name in config.inputs:
        documents = read_documents(name, config.text_column, lang=config.lang)
        for document in tqdm(documents, desc="cloze", unit=" documents"):
            texts = kept.setdefault(document["lang"], [])
            seen[document["lang"]] += 1
            if len(texts) < config.questions:
                texts.append(document["text"])
            elif (place := draw.randrange(seen[document["lang"]])) < config.questions:
                texts[place] = document["text"]
    rows: list[dict[str, Any]] = []
    for lang, texts in sorted(kept.items()):
        draw.shuffle(texts)
        found = islice(questions_of(texts, lang, draw), config.questions // len(kept))
        rows += [{"id": f"{lang}-{number}", **row} for number, row in enumerate(found)]
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
    print(f"cloze: {len(rows):,} questions ({', '.join(sorted(kept))}); {config.output}", flush=True)
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


def questions_of(texts: Sequence[str], lang: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """At most one question a passage, of some passages of each text."""
    for text in texts:
        passages = list(passages_of(text, lang))
        for passage in draw.sample(passages, min(PASSAGES, len(passages))):
            row = question(passage, lang, draw)
            if row is not None:
                yield row


def question(passage: Sequence[str], lang: str, draw: random.Random) -> dict[str, Any] | None:
    """A row in SQuAD's columns, without an id, that asks for a span of one of the sentences; None if none will do."""
    units = [[m.span() for m in UNIT.get(lang, WORD).finditer(sentence)] for sentence in passage]
    long = [number for number, spans in enumerate(units) if len(spans) >= MIN_UNITS[lang == "zh"]]
    if len(passage) < 2 or not long:
        return None
    number = draw.choice(long)
    sentence, spans = passage[number], units[number]
    chosen = _span(sentence, spans, lang, draw)
    if chosen is None:
        return None
    first, last = chosen
    start, end = spans[first][0], spans[last - 1][1]
    before = _thinned(sentence, spans[max(0, first - REACH) : first], lang, draw)
    after = _thinned(sentence, spans[last : last + REACH], lang, draw)
    match draw.randrange(4):
        case 0:
            pieces = [*before, HIDDEN, *after]
        case 1:
            pieces = [*before, *after]
        case 2:
            pieces = [HIDDEN, *after, *before]
        case _:
            pieces = [*after, *before]
    joint = "" if lang == "zh" else " "
    asked = joint.join(pieces) + ("？" if lang == "zh" else " ?")
    answer = sentence[start:end]
    if len(before) + len(after) < 2 or answer.lower() in asked.lower():
        return None
    place = sum(len(each) + len(joint) for each in passage[:number]) + start
    answers = {"text": [answer], "answer_start": [place]}
    return {"question": asked, "context": joint.join(passage), "answers": answers, "lang": lang}


def _span(sentence: str, spans: Sequence[tuple[int, int]], lang: str, draw: random.Random) -> tuple[int, int] | None:
    """First unit of an answer and the one after its last: one of a few drawn that no punctuation cuts, rather one with
    digits or a capital, as answers to real questions often have."""
    shortest, longest = LENGTHS[lang == "zh"]
    found, weights = [], []
    for _ in range(TRIES):
        length = min(draw.randint(shortest, longest), len(spans) // 2)
        first = draw.randrange(len(spans) - length + 1)
        text = sentence[spans[first][0] : spans[first + length - 1][1]]
        if not CUT.search(text):
            found.append((first, first + length))
            weights.append((4 if re.search(r"\d", text) else 1) * (3 if text[0].isupper() else 1))
    return draw.choices(found, weights)[0] if found else None


def _thinned(sentence: str, spans: Sequence[tuple[int, int]], lang: str, draw: random.Random) -> list[str]:
    """Runs of a few units; a part of them is left out."""
    runs, at = [], 0
    while at < len(spans):
        run = spans[at : at + draw.randint(1, 4 if lang == "zh" else 3)]
        at += len(run)
        if draw.random() < KEPT:
            runs.append(sentence[run[0][0] : run[-1][1]])
    return runs


if __name__ == "__main__":
    run_cli(run, ClozeConfig)
