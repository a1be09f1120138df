"""Baselines give what their one-line rule says, in three languages."""

import pytest

from septet.tasks.harness.baselines import baselines, sentences
from septet.tasks.harness.metrics import score


def rows(name, *pairs):
    """Examples with one input."""
    return [
        {"id": str(i), "lang": "en", "input": {name: given}, "reference": out} for i, (given, out) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Version 2.5 is out. It's fast! Is it?", ["Version 2.5 is out.", "It's fast!", "Is it?"]),
        ("He said « Non ! » Then left.", ["He said « Non ! »", "Then left."]),
        ("今天下雨。「真的吗？」他问。", ["今天下雨。", "「真的吗？」", "他问。"]),
        ("报告1例.患儿男,2.5岁.", ["报告1例.", "患儿男,2.5岁."]),
        ("no mark at all", ["no mark at all"]),
        ("  \n", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_translation_copies_and_summaries_lead():
    test = rows("source", ("Paris is big.", "Paris est grande."))
    assert baselines("translation", [], test) == {"copy source": ["Paris is big."]}
    documents = rows("document", ("One thing. Another.", "x"), ("第一句。第二句。", "x"), ("", "x"))
    assert baselines("summarization", [], documents) == {"lead sentence": ["One thing.", "第一句。", ""]}


def test_classification_learns_a_separable_set_that_the_majority_does_not():
    train = rows(
        "text", *[("good film", "+"), ("a good story", "+"), ("很好看", "+"), ("bad film", "-"), ("不好看", "-")] * 4
    )
    test = rows("text", ("good acting", "+"), ("bad story", "-"), ("不好", "-"))
    predictions = baselines("classification", train, test)
    assert predictions["majority class"] == ["+", "+", "+"]
    assert predictions["TF-IDF + logistic regression"] == ["+", "-", "-"]
    one_class = rows("text", ("good", "+"), ("fine", "+"))
    assert baselines("classification", one_class, test)["TF-IDF + logistic regression"] == ["+", "+", "+"]


@pytest.mark.parametrize(
    ("question", "context", "answer"),
    [
        (
            "Who built the old bridge?",
            "It rained. The old bridge was built by Ann, and painted.",
            "The old bridge was built by Ann",
        ),
        ("Où est né le peintre ?", "Il mourut à Rome. Le peintre est né à Lyon, en 1820.", "Le peintre est né à Lyon"),
        ("大桥长多少米？", "城市很大。大桥长三百米，很宽。", "大桥长三百米"),
        ("anything?", "", ""),
    ],
)
def test_word_overlap(question, context, answer):
    test = [{"id": "0", "lang": "en", "input": {"question": question, "context": context}, "reference": [answer]}]
    assert baselines("qa", [], test) == {"word overlap": [answer]}


def test_gazetteer_takes_the_longest_match_and_the_most_frequent_type():
    train = rows(
        "tokens",
        (["New", "York"], ["B-LOC", "I-LOC"]),
        (["New", "York", "Times"], ["B-ORG", "I-ORG", "I-ORG"]),
        (["York"], ["B-PER"]),
        (["York"], ["B-LOC"]),
        (["York"], ["B-LOC"]),
        (list("去北京"), ["O", "B-LOC", "I-LOC"]),
    )
    test = rows("tokens", (["The", "New", "York", "Times", "in", "York"], []), (list("张三去北京"), []), ([], []))
    assert baselines("ner", train, test)["gazetteer"] == [
        ["O", "B-ORG", "I-ORG", "I-ORG", "O", "B-LOC"],
        ["O", "O", "O", "B-LOC", "I-LOC"],
        [],
    ]
    seen = baselines("ner", train[:2], train[:2])["gazetteer"]
    assert score("ner", seen, [row["reference"] for row in train[:2]], "en")["entity_f1"] == 100


def test_a_task_without_baselines_has_none():
    assert baselines("sixth", [], []) == {}
