"""Each metric against the implementation that the field reports it with, in three languages."""

import random
import re
import string
from collections import Counter

import numpy as np
import pytest

from septet.data.errors import UserError
from septet.tasks import metrics as modules
from septet.tasks.harness import metrics

TEXTS = {
    "en": ["The quick brown fox, aged 3, jumps over the lazy dog.", "It's 9 o'clock; we left at 8.30 p.m.", "Yes!"],
    "fr": ["L'été dernier, nous étions à Besançon.", "« Où es-tu ? » demanda l’élève.", "Un cœur d'or"],
    "zh": ["今天天气很好，我们去公园散步。", "他在2024年学习了Python语言。", "人工智能（AI）是什么？"],
}
LANGUAGES = [language for language in TEXTS for _ in TEXTS[language]]
ALL = [text for texts in TEXTS.values() for text in texts]


def damaged(text, generator, unit=" "):
    """The text with some of its words (or characters) dropped, doubled or swapped."""
    parts = text.split(unit) if unit else list(text)
    kept = [part for part in parts for _ in range(generator.choice([0, 1, 1, 1, 2]))]
    if generator.random() < 0.3:
        generator.shuffle(kept)
    return unit.join(kept)


def pairs(language, count, seed=0):
    """`count` (prediction, reference) pairs of random sentences."""
    generator = random.Random(seed)
    unit = "" if language == "zh" else " "
    parts = [part for text in TEXTS[language] for part in (text.split(unit) if unit else text)]
    references = [unit.join(generator.choices(parts, k=generator.randint(1, 25))) for _ in range(count)]
    return [damaged(reference, generator, unit) for reference in references], references


def random_tags(generator, length):
    return generator.choices(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], k=length)


# ---- translation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "tokenizer"), [("en", "13a"), ("fr", "13a"), ("zh", "zh")])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_translation_is_sacrebleu(language, tokenizer, count):
    import sacrebleu

    predictions, references = pairs(language, count)
    scores = metrics.compute("translation", predictions, references, language)
    expected = {
        "bleu": sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenizer),
        "chrf": sacrebleu.corpus_chrf(predictions, [references]),
        "chrf++": sacrebleu.corpus_chrf(predictions, [references], word_order=2),
    }
    assert {name: entry["value"] for name, entry in scores.items()} == pytest.approx(
        {name: score.score for name, score in expected.items()}, abs=1e-9
    )
    assert f"|tok:{tokenizer}|" in scores["bleu"]["signature"] and "nrefs:1" in scores["bleu"]["signature"]


def test_each_segment_is_tokenized_by_its_language():
    scores = metrics.compute("translation", ALL, ALL, LANGUAGES)
    assert scores["bleu"]["value"] == pytest.approx(100)
    assert scores["bleu"]["signature"].startswith("en+fr: nrefs:1|") and "zh: nrefs:1|" in scores["bleu"]["signature"]

    from sacrebleu import corpus_bleu
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    sides = [], []
    for language, tokenize in (("zh", TokenizerZh()), ("fr", Tokenizer13a())):
        for side, texts in zip(sides, pairs(language, 20), strict=True):
            side.extend((text, tokenize(text)) for text in texts)
    (predictions, their_predictions), (references, their_references) = (zip(*side, strict=True) for side in sides)
    expected = corpus_bleu(their_predictions, [their_references], tokenize="none").score
    scores = metrics.score("translation", predictions, references, ["zh"] * 20 + ["fr"] * 20)
    assert scores["bleu"] == pytest.approx(expected, abs=1e-9)


# ---- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_classification_is_sklearn(seed):
    from sklearn import metrics as sklearn

    generator = random.Random(seed)
    references = generator.choices("abcde", weights=[9, 5, 3, 1, 1], k=60)
    predictions = [generator.choice("abcdef") if generator.random() < 0.4 else label for label in references]

    def expected(references, predictions):
        by_average = {
            f"{average}_{name}": 100 * function(references, predictions, average=average, zero_division=0)
            for average in ("macro", "micro", "weighted")
            for name, function in (
                ("f1", sklearn.f1_score),
                ("precision", sklearn.precision_score),
                ("recall", sklearn.recall_score),
            )
        }
        return by_average | {"accuracy": 100 * sklearn.accuracy_score(references, predictions)}

    scores, reference = (
        metrics.score("classification", predictions, references, "en"),
        expected(references, predictions),
    )
    assert scores == pytest.approx({name: reference[name] for name in scores}, abs=1e-9)

    # A resample that misses a label altogether is scored as scikit-learn scores those rows.
    drawn = [row for row in range(60) if references[row] != "e" and predictions[row] != "e"][:20]
    sums = metrics.get("classification", "macro_f1").statistics(predictions, references, [])[drawn].sum(0)
    of_drawn = expected([references[row] for row in drawn], [predictions[row] for row in drawn])
    for metric in metrics.FAMILIES["classification"]:
        assert float(metric.aggregate(sums)) == pytest.approx(of_drawn[metric.name], abs=1e-9)

    labels = sorted({*predictions, *references})
    table = metrics.class_table(predictions, references)
    p, r, f1, support = sklearn.precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
    assert [row["label"] for row in table] == labels and [row["support"] for row in table] == support.tolist()
    for column, values in (("precision", p), ("recall", r), ("f1", f1)):
        assert [row[column] for row in table] == pytest.approx(100 * values, abs=1e-9)
    matrix = sklearn.confusion_matrix(references, predictions, labels=labels).tolist()
    assert metrics.confusion(predictions, references) == {"labels": labels, "matrix": matrix}


# ---- question answering -----------------------------------------------------------------------------------------------


def squad_tokens(text):
    """The four steps as published with SQuAD: lower, punctuation, articles, white space."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(prediction, answer):
    predicted, expected = squad_tokens(prediction), squad_tokens(answer)
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not predicted or not expected:
        return float(predicted == expected)
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def test_english_answers_are_squads():
    predictions, references = pairs("en", 300)
    predictions, references = [f"{p} the U.S.A." for p in predictions], [f"The {r}, an A.B." for r in references]
    answers = [[first, second] for first, second in zip(references, reversed(references), strict=True)]
    exact = [
        max(squad_tokens(p) == squad_tokens(a) for a in both) for p, both in zip(predictions, answers, strict=True)
    ]
    f1 = [max(squad_f1(p, a) for a in both) for p, both in zip(predictions, answers, strict=True)]
    expected = {"exact_match": 100 * np.mean(exact), "f1": 100 * np.mean(f1)}
    assert metrics.score("qa", predictions, answers, "en") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "language", "tokens"),
    [
        ("The cat, an  animal!", "en", ["cat", "animal"]),
        ("A.B.C. theatre", "en", ["abc", "theatre"]),
        ("L'église du Sacré-Cœur", "fr", ["église", "sacrécœur"]),
        ("« l’été » aux Antilles", "fr", ["été", "antilles"]),
        ("aujourd'hui les États-Unis", "fr", ["aujourdhui", "étatsunis"]),
        ("《红楼梦》", "zh", ["红", "楼", "梦"]),
        ("在Windows 10上，约3.5个", "zh", ["在", "windows", "10", "上", "约", "35", "个"]),
    ],
)
def test_answers_are_normalised_by_language(text, language, tokens):
    assert metrics.answer_tokens(text, language) == tokens


@pytest.mark.filterwarnings("ignore:exact_match")
@pytest.mark.parametrize(
    ("prediction", "answers", "language", "exact", "f1"),
    [
        ("北京大学", ["北京", "清华大学"], "zh", 0, 200 / 3),
        ("le chat noir", ["Chat noir.", "un chien"], "fr", 100, 100),
        ("", [], "en", 100, 100),
        ("something", [], "en", 0, 0),
        ("", ["Paris"], "fr", 0, 0),
        ("", ["the", "cat"], "en", 0, 0),  # an answer that is all article is no way to be right by silence
    ],
)
def test_answers_worked_by_hand(prediction, answers, language, exact, f1):
    scores = metrics.score("qa", [prediction], [answers], language)
    assert scores == pytest.approx({"exact_match": exact, "f1": f1}, abs=1e-9)


# ---- summarization ----------------------------------------------------------------------------------------------------


def test_rouge_on_ascii_is_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = pairs("en", 200)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
    expected = {name: 100 * np.mean([row[name].fmeasure for row in rows]) for name in rows[0]}
    assert metrics.score("summarization", predictions, references, "en") == pytest.approx(expected, abs=1e-9)


def test_words_of_three_languages():
    assert metrics.words("L’Été à Besançon, en e\u0301te\u0301") == ["l", "été", "à", "besançon", "en", "été"]
    assert metrics.words("在２０２４年学Python_3") == ["在", "2024", "年", "学", "python", "3"]


def test_rouge_of_chinese_worked_by_hand():
    scores = metrics.score("summarization", ["我爱北京"], ["我爱上海"], "zh")  # 2 of 4 characters, 1 of 3 pairs
    assert scores == pytest.approx({"rouge1": 50, "rouge2": 100 / 3, "rougeL": 50})


def test_a_text_that_the_tokenizer_drops_is_warned_of():
    with pytest.warns(UserWarning, match="rouge: the tokenizer keeps nothing of 2 texts, such as '♥♥♥'"):
        metrics.score("summarization", ["♥♥♥"], ["♥♥♥"], "en")
    with pytest.warns(UserWarning, match="exact_match and f1"):
        metrics.score("qa", ["les"], [["les chats"]], "fr")


# ---- named entities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_entities_are_seqevals_strict_ones(seed):
    from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    generator = random.Random(seed)
    references = [random_tags(generator, generator.randint(1, 20)) for _ in range(60)]
    predictions = [[tag if generator.random() < 0.8 else "O" for tag in tags] for tags in references]
    predictions = [random_tags(generator, len(tags)) if generator.random() < 0.2 else tags for tags in predictions]
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    expected = {
        "entity_f1": 100 * f1_score(references, predictions, **strict),
        "entity_precision": 100 * precision_score(references, predictions, **strict),
        "entity_recall": 100 * recall_score(references, predictions, **strict),
    }
    assert metrics.score("ner", predictions, references, "en") == pytest.approx(expected, abs=1e-9)
    report = classification_report(references, predictions, output_dict=True, **strict)
    table = metrics.entity_table(predictions, references)
    assert [row["label"] for row in table] == ["LOC", "PER"]
    for row in table:
        theirs = report[row["label"]]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(
            [100 * theirs[name] for name in ("precision", "recall", "f1-score")], abs=1e-9
        )
        assert row["support"] == theirs["support"]


def test_strict_entities_begin_with_b():
    tags = ["I-PER", "B-PER", "I-PER", "I-LOC", "B-LOC", "B-LOC", "O", "I-LOC"]
    assert metrics.entities(tags) == {("PER", 1, 3), ("LOC", 4, 5), ("LOC", 5, 6)}


# ---- all families -----------------------------------------------------------------------------------------------------

PERFECT = {
    "translation": (ALL, ALL),
    "classification": (LANGUAGES, LANGUAGES),
    "qa": (ALL, [[text] for text in ALL]),
    "summarization": (ALL, ALL),
    "ner": ([["B-PER", "I-PER", "O"]] * 9, [["B-PER", "I-PER", "O"]] * 9),
}
MODULES = {"translation": "bleu", "classification": "classification", "qa": "squad", "summarization": "rouge", "ner": "entity_f1"}  # fmt: skip


def mixed(family):
    """Predictions of middling quality."""
    predictions, references = PERFECT[family]
    return [*predictions[:5], predictions[0], *predictions[6:]], references


@pytest.mark.parametrize("family", metrics.FAMILIES)
@pytest.mark.parametrize("language", TEXTS)
def test_gold_scores_100_in_each_language(family, language):
    rows = [row for row, other in enumerate(LANGUAGES) if other == language][:2]
    predictions, references = ([part[row] for row in rows] for part in PERFECT[family])
    for entry in metrics.compute(family, predictions, references, language).values():
        assert [entry["value"], entry["low"], entry["high"]] == pytest.approx([100, 100, 100])


@pytest.mark.parametrize("family", metrics.FAMILIES)
def test_score_and_compute_agree_and_the_interval_holds_the_value(family):
    predictions, references = mixed(family)
    scores = metrics.score(family, predictions, references, LANGUAGES)
    entries = metrics.compute(family, predictions, references, LANGUAGES)
    assert {name: entry["value"] for name, entry in entries.items()} == scores
    for entry in entries.values():
        assert entry["low"] <= entry["value"] <= entry["high"] and entry["signature"]
    assert entries == metrics.compute(family, predictions, references, LANGUAGES)


def test_difference_knows_labels_that_only_one_system_predicts():
    references = ["a"] * 30 + ["b"] * 30
    good, bad = references, ["c"] * 60
    result = metrics.difference("classification", "macro_f1", good, bad, references, "en")
    assert result["value"] == pytest.approx(100) and result["p_value"] < 0.01
    assert metrics.difference("classification", "macro_f1", good, good, references, "en")["p_value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("translations", ["a"], ["a"], "en"), "did you mean 'translation'"),
        (("translation", ["a"], ["a"], "zho"), "language 'zho'.*did you mean 'zh'"),
        (("translation", ["a"], ["a", "b"], "en"), "1 predictions, 2 references"),
        (("qa", [], [], "en"), "0 rows"),
        (("ner", [["S-PER"]], [["O"]], "en"), "'S-PER'.*IOB2"),
        (("ner", [["O", "O"]], [["O"]], "en"), "row 0: 2 predicted tags for 1 tokens"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        metrics.score(*arguments)


@pytest.mark.parametrize("family", metrics.FAMILIES)
def test_evaluate_modules_load_offline_and_agree(family, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictions, references = mixed(family)
    module = modules.load(MODULES[family])
    assert module.compute(predictions=predictions, references=references, languages=LANGUAGES) == pytest.approx(
        metrics.score(family, predictions, references, LANGUAGES), abs=1e-9
    )
    one = module.compute(predictions=predictions[:3], references=references[:3], languages="en")
    assert one == pytest.approx(metrics.score(family, predictions[:3], references[:3], "en"), abs=1e-9)


def test_an_unknown_module_is_named():
    with pytest.raises(UserError, match="did you mean 'rouge'"):
        modules.load("rogue")
