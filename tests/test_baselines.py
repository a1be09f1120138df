"""Baselines give what their one-line rule says, in three languages."""

import sys

import numpy as np
import pytest

from septet.tasks.harness.baselines import (
    TOKEN_VECTOR,
    baselines,
    gazetteer,
    tfidf,
    word_means,
    word_vectors,
    word_windows,
)
from septet.tasks.harness.metrics import score, sentences


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


POLARITY = [("good film", "+"), ("a good story", "+"), ("很好看", "+"), ("bad film", "-"), ("不好看", "-")] * 4
LINEAR = ("TF-IDF + logistic regression", "word2vec + logistic regression")


def test_classification_learns_a_separable_set_that_the_majority_does_not():
    test = rows("text", ("good acting", "+"), ("bad story", "-"), ("不好", "-"))
    predictions = baselines("classification", rows("text", *POLARITY), test)
    assert predictions["majority class"] == ["+", "+", "+"]
    assert [predictions[name] for name in LINEAR] == [["+", "-", "-"]] * 2
    one_class = baselines("classification", rows("text", ("good", "+"), ("fine", "+")), test)
    assert [one_class[name] for name in LINEAR] == [["+", "+", "+"]] * 2


def test_rare_classes_weigh_as_much_as_frequent_ones():
    frequent = [(f"news of day {n} about town {n % 9}", "news") for n in range(300)]
    train = rows("text", *frequent, *[(f"news of day {n} about chess", "chess") for n in range(3)])
    [prediction] = baselines("classification", train, rows("text", ("about chess", "chess")))[
        "TF-IDF + logistic regression"
    ]
    assert prediction == "chess"


def test_multilabel_and_regression_learn_too():
    train = rows("text", *[(text, [label, "film"] if "film" in text else [label]) for text, label in POLARITY])
    test = rows("text", ("good film", []), ("不好看", []))
    assert list(baselines("multilabel", train, test).values()) == [[["+", "film"], ["-"]]] * 2
    train = rows("text", *[(text, 5.0 if label == "+" else 1.0) for text, label in POLARITY])
    for good, bad in baselines("regression", train, test).values():
        assert good > 3 > bad


def test_features_of_texts():
    train, test = tfidf(["Good films", "很好看"], ["GOOD film", "好看", ""])
    assert train.shape[1] == test.shape[1]
    assert (test[0] @ train.T).toarray()[0, 0] > 0 == (test[0] @ train.T).toarray()[0, 1]
    assert (test[1] @ train.T).toarray()[0, 1] > 0
    assert test[2].nnz == 0
    texts = [text for text, _ in POLARITY]
    train, test = word_means(texts, ["good film", "unheard of", ""])
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(test[0], train[0])
    np.testing.assert_array_equal(test[1], test[2])  # no known word


def test_word_vectors_are_the_same_again():
    texts = [["the", "cat", "sleeps"], ["the", "dog", "sleeps"]] * 20
    first, again = word_vectors(texts, 8), word_vectors(texts, 8)
    assert first.keys() == {"the", "cat", "dog", "sleeps"}
    for word, vector in first.items():
        np.testing.assert_array_equal(vector, again[word])
    assert not first["cow"].any()
    assert first["cat"] @ first["dog"] != 0


def test_windows_of_words():
    vectors = {"ann": np.full(TOKEN_VECTOR, 1), "in": np.full(TOKEN_VECTOR, 2), "b2": np.full(TOKEN_VECTOR, 3)}
    windows = word_windows([["Ann", "in", "B2"], [], ["in"]], vectors)
    assert windows.shape == (4, 5 * (TOKEN_VECTOR + 4))
    places = windows.reshape(4, 5, -1)
    assert places[:, :, 0].tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 0], [1, 2, 3, 0, 0], [0, 0, 2, 0, 0]]
    written = places[:3, 2, TOKEN_VECTOR:].tolist()  # in capitals, begins with one, holds one, holds a digit
    assert written == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_a_tagger_of_word_vectors_goes_by_neighbours_and_capitals():
    names = ["Anna", "Tom", "Mary", "Li", "Paul"]
    train = [(["yesterday", name, "said", "no"], ["O", "B-PER", "O", "O"]) for name in names]
    train += [
        (["she", "lives", "in", place, "now"], ["O", "O", "O", "B-LOC", "O"]) for place in ("Rome", "Lyon", "Bonn")
    ]
    train += [(["in", "New", place], ["O", "B-LOC", "I-LOC"]) for place in ("York", "Delhi")]
    train = rows("tokens", *train * 5)
    test = rows(
        "tokens", (["yesterday", "Zoe", "said", "no"], []), (["she", "lives", "in", "Oslo", "now"], []), ([], [])
    )
    tagged = baselines("ner", train, test)
    assert tagged["word2vec + logistic regression"] == [["O", "B-PER", "O", "O"], ["O", "O", "O", "B-LOC", "O"], []]
    assert tagged["gazetteer"] == [["O"] * 4, ["O"] * 5, []]


def test_without_gensim_the_others_stand_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    found = baselines("classification", rows("text", *POLARITY), rows("text", ("good", "+")))
    assert list(found) == ["majority class", "TF-IDF + logistic regression"]
    line = "baseline 'word2vec + logistic regression': left out, gensim is not installed (pip install gensim)\n"
    assert capsys.readouterr().out == line


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
    assert gazetteer(train, test) == [
        ["O", "B-ORG", "I-ORG", "I-ORG", "O", "B-LOC"],
        ["O", "O", "O", "B-LOC", "I-LOC"],
        [],
    ]
    seen = gazetteer(train[:2], train[:2])
    assert score("ner", seen, [row["reference"] for row in train[:2]], "en")["entity_f1"] == 100


def test_a_task_without_baselines_has_none():
    assert baselines("sixth", [], []) == {}


def test_a_single_label_is_a_set_of_labels_too():
    train = rows("text", ("a goal", ["sport"]), ("a stew", []), ("goal again", ["sport"]), ("another stew", []))
    found = baselines("multilabel", train, rows("text", ("goal", ["sport"]), ("stew", [])))
    assert found["TF-IDF + logistic regression"] == [["sport"], []]
