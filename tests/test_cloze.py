"""Questions made of text: the answer stands in the context, the question does not say it, and the same seed asks the same."""

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
    "en": "In {n} the old mill at Hobbiton burned down to the ground. Nobody lived there. Everyone knew Old Tom had done it.",
    "fr": "En {n} le vieux moulin de Sainte-Croix a brûlé jusqu'au sol. Personne n'y vivait. Tout le monde le savait déjà.",
    "zh": "{n}年霍比屯的老磨坊在一场大火中烧毁了。那里没有人住。大家都知道是老汤姆放的火。",
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rows = [{"text": text.format(n=1000 + n), "lang": lang} for lang, text in TEXTS.items() for n in range(200)]
    write_jsonl(tmp_path / "text.jsonl.gz", rows)
    return tmp_path / "text.jsonl.gz"


def test_a_question_asks_for_what_its_sentence_has_beside_it(text: Path, tmp_path: Path) -> None:
    config = cloze.ClozeConfig((str(text),), output=tmp_path / "cloze", questions=300, validation=30)
    cloze.run(config)
    task = get_task("qa")
    train, held_out = (
        read_examples(task, str(tmp_path / "cloze"), split, Reading({})) for split in ("train", "validation")
    )
    assert (len(train), len(held_out)) == (270, 30)
    for lang in TEXTS:
        assert sum(example.lang == lang for example in [*train, *held_out]) == 100
    for example in (*train, *held_out):  # the recipe itself has checked that answers start where they say
        question, [answer] = example.input["question"], example.reference
        [(start, end)] = example.extra["spans"]
        assert answer.lower() not in question.lower()
        # Every piece of the question stands in the context outside of the answer.
        rest = example.input["context"][:start] + "\n" + example.input["context"][end:]
        units = cloze.UNIT.get(example.lang, cloze.WORD).findall(question.replace(cloze.HIDDEN, ""))
        assert units and all(unit in rest for unit in units)
        assert question.endswith("？" if example.lang == "zh" else " ?")
    answers = [example.reference[0] for example in train]
    years = sum(any(sign.isdigit() for sign in answer) for answer in answers)
    assert years > len(answers) / 8  # digits are asked for more often than their share of the words, some one in twenty
    cloze.run(dataclasses.replace(config, output=tmp_path / "again"))
    for split in ("train", "validation"):
        name = f"{split}.jsonl.gz"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "cloze" / name).read_bytes()


def test_questions_are_of_several_makes() -> None:
    passage = ["The red fox of the north saw the grey wolf near the river.", "Nobody was there."]
    asked = [cloze.question(passage, "en", random.Random(seed)) for seed in range(200)]
    rows = [row["question"] for row in asked if row is not None]
    assert 0.3 < sum(cloze.HIDDEN in row for row in rows) / len(rows) < 0.7
    assert any(row.startswith(cloze.HIDDEN) for row in rows)
    assert len({row["answers"]["text"][0] for row in asked if row is not None}) > 10


@pytest.mark.parametrize(
    "passage", [["One sentence that is long enough but stands alone here."], ["Too short.", "This too."]]
)
def test_a_passage_with_nothing_to_ask_gives_no_question(passage: list[str]) -> None:
    assert all(cloze.question(passage, "en", random.Random(seed)) is None for seed in range(20))


def test_an_answer_has_no_punctuation_within() -> None:
    passage = ["We saw, she said, the (old) king. Now, then, again, more, here.", "Nothing else."]
    rows = [cloze.question(passage, "en", random.Random(seed)) for seed in range(300)]
    found = {row["answers"]["text"][0] for row in rows if row is not None}
    assert found and not any(sign in answer for answer in found for sign in ",().")


def test_few_documents_of_many_are_kept(tmp_path: Path) -> None:
    """Memory is bounded by the number of questions; the sample is of all documents, not of the first."""
    rows = [{"text": TEXTS["en"].format(n=1000 + n), "lang": "en"} for n in range(2000)]
    write_jsonl(tmp_path / "text.jsonl.gz", rows)
    config = cloze.ClozeConfig((str(tmp_path / "text.jsonl.gz"),), output=tmp_path / "c", questions=60, validation=10)
    cloze.run(config)
    train = read_examples(get_task("qa"), str(tmp_path / "c"), "train", Reading({}))
    years = [int(word) for e in train for word in e.input["context"].split() if word.isdigit()]
    assert 40 <= len(train) <= 50 and max(years) > 2500 and min(years) < 1500


def test_text_that_nothing_can_be_asked_about_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "text.jsonl", [{"text": "One two. Three four.", "lang": "en"}])
    with pytest.raises(UserError, match="0 questions could be made, more than --validation 200 are needed"):
        cloze.run(cloze.ClozeConfig((str(tmp_path / "text.jsonl"),), output=tmp_path / "cloze"))
    assert not (tmp_path / "cloze").exists()
