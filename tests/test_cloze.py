"""Questions made of text: what is asked for stands in the context, nothing gives it away, and the same seed asks the same."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.tasks.harness import cloze
from septet.tasks.harness.task import Reading, get_task, read_examples

TEXTS = {
    "en": "The old mill at {name} burned down. Nobody lived there. People say that {name} was never the same. Nobody knows.",
    "fr": "Le moulin de {name} a brûlé. Personne n'y vivait. On dit que {name} n'est plus le même. Personne ne sait.",
    "zh": "{name}的老磨坊烧毁了。那里没有人住。人们说{name}再也不一样了。没有人知道。",
}
NAMES = {"en": "Hobbiton{n}", "fr": "Sainte-Croix{n}", "zh": "{a}家{b}"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two hundred documents, each about a place that no other names."""
    rows, signs = [], "东南西北山水木火土金日月星云风雨"
    for lang, text in TEXTS.items():
        for n in range(200):
            name = NAMES[lang].format(n=n, a=signs[n % 16], b=signs[n // 16])
            rows.append({"text": text.format(name=name), "lang": lang, "source": "s"})
    write_jsonl(tmp_path / "text.jsonl.gz", rows)
    return tmp_path / "text.jsonl.gz"


def test_a_question_asks_for_what_the_context_has_and_does_not_say_it(text: Path, tmp_path: Path) -> None:
    config = cloze.ClozeConfig((str(text),), output=tmp_path / "cloze", questions=300, validation=30)
    cloze.run(config)
    task = get_task("qa")
    train, held_out = (
        read_examples(task, str(tmp_path / "cloze"), split, Reading({})) for split in ("train", "validation")
    )
    assert (len(train), len(held_out)) == (270, 30)
    assert {lang: sum(e.lang == lang for e in [*train, *held_out]) for lang in TEXTS} == {
        "en": 100,
        "fr": 100,
        "zh": 100,
    }
    for example in (*train, *held_out):  # the recipe itself has checked that answers start where they say
        question, [answer] = example.input["question"], example.reference
        assert cloze.HIDDEN in question
        assert answer.lower() not in question.lower()
        # The frame recurs in every document, so nobody asks for it: only the names are asked for.
        known = {"en": "Hobbiton", "fr": "Sainte-Croix", "zh": "家"}[example.lang]
        assert known in answer
    cloze.run(dataclasses.replace(config, output=tmp_path / "again"))
    for split in ("train", "validation"):
        name = f"{split}.jsonl.gz"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "cloze" / name).read_bytes()


def test_spans_are_as_long_as_what_recurs() -> None:
    found = cloze.recurring_spans(
        ["I saw the Grand Hotel Bristol there.", "We left the Grand Hotel Bristol.", "No hotel."], "en"
    )
    assert "the grand hotel bristol" in found
    assert "grand hotel" not in found  # it never stands alone
    assert found["hotel"] == {0: [(16, 21)], 1: [(18, 23)], 2: [(3, 8)]}  # this does
    assert cloze.recurring_spans(["张三丰去北京。", "张三丰很老。", "北京很大。"], "zh") == {
        "张三丰": {0: [(0, 3)], 1: [(0, 3)]},
        "北京": {0: [(4, 6)], 2: [(0, 2)]},
    }
    assert cloze.recurring_spans(["a, b c.", "a b, c."], "en") == {}  # commas end a span, and letters are too short


def test_every_place_of_an_answer_is_one() -> None:
    passage = ["Rome fell.", "They built Rome in a day.", "Rome!"]
    row = cloze.question(passage, cloze.recurring_spans(passage, "en")["rome"], "en", "0", random.Random(1))
    assert len(row["answers"]["text"]) == len(row["answers"]["answer_start"]) == 2
    for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        assert row["context"][start : start + len(answer)] == answer == "Rome"
    assert row["question"].endswith(" ?")


@pytest.mark.parametrize(
    "passage",
    [
        ["The max_value is big.", "Set max_value now."],
        ["İstanbul is old.", "We saw İstanbul."],
        ["Rome Rome Rome.", "Rome!"],
    ],
)
def test_words_of_odd_letters_are_asked_for_where_they_stand(passage: list[str]) -> None:
    for places in cloze.recurring_spans(passage, "en").values():
        for seed in range(4):
            row = cloze.question(passage, places, "en", "0", random.Random(seed))
            assert row["answers"]["text"]
            for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(answer)] == answer
                assert answer not in row["question"].replace("Rome Rome", "")


def test_text_in_which_nothing_recurs_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "text.jsonl", [{"text": "One two. Three four.", "lang": "en"}])
    with pytest.raises(UserError, match="0 questions could be made, more than --validation 200 are needed"):
        cloze.run(cloze.ClozeConfig((str(tmp_path / "text.jsonl"),), output=tmp_path / "cloze"))
    assert not (tmp_path / "cloze").exists()
