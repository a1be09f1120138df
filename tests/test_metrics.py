"""Each metric against the implementation that the field reports it with, in three languages."""

import itertools
import random
import re
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest

from septet.data.errors import UserError
from septet.tasks import metrics as modules
from septet.tasks.harness import metrics, predict
from septet.tasks.harness.metrics.ner import partial_credit
from septet.tasks.harness.task import Example, Task, get_task

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


def several(references, seed=0):
    """One to three references a segment: the given one, and others at random."""
    generator = random.Random(seed)
    return [[text, *generator.choices(references, k=generator.randint(0, 2))] for text in references]


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


@pytest.mark.parametrize("language", TEXTS)
def test_translation_with_references_of_differing_number_is_sacrebleu(language):
    import sacrebleu

    predictions, references = pairs(language, 60)
    lists = several(references)
    streams = [[texts[i] if i < len(texts) else None for texts in lists] for i in range(3)]
    scores = metrics.compute("translation", predictions, lists, language)
    expected = {
        "bleu": sacrebleu.BLEU(trg_lang=language).corpus_score(predictions, streams).score,
        "chrf": sacrebleu.CHRF().corpus_score(predictions, streams).score,
        "chrf++": sacrebleu.CHRF(word_order=2).corpus_score(predictions, streams).score,
    }
    values = {name: entry["value"] for name, entry in scores.items()}
    assert values == pytest.approx(expected, abs=1e-9)
    assert values != pytest.approx(metrics.score("translation", predictions, references, language), abs=1)
    assert all("nrefs:var|" in entry["signature"] for entry in scores.values())
    two = metrics.compute("translation", predictions, [texts[:1] * 2 for texts in lists], language)
    assert "nrefs:2|" in two["bleu"]["signature"]


def test_bleu_that_can_only_be_zero_is_warned_of():
    with pytest.warns(UserWarning, match="no reference has four tokens"):
        assert metrics.score("translation", ["Yes!"], ["Yes!"], "en")["bleu"] == 0


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
        accuracy, correlation = sklearn.accuracy_score, sklearn.matthews_corrcoef
        return by_average | {
            "accuracy": 100 * accuracy(references, predictions),
            "mcc": 100 * correlation(references, predictions),
        }

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


def test_one_label_alone_correlates_with_nothing():
    assert metrics.score("classification", ["a", "a"], ["a", "a"], "en")["mcc"] == 0  # as scikit-learn's


@pytest.mark.parametrize("seed", range(5))
def test_label_sets_are_sklearns(seed):
    from sklearn import metrics as sklearn
    from sklearn.preprocessing import MultiLabelBinarizer

    generator = random.Random(seed)
    references = [sorted(generator.sample("abcd", generator.randint(0, 3))) for _ in range(60)]
    predictions = [[x for x in "abcde" if (x in labels) == (generator.random() < 0.8)] for labels in references]
    columns = MultiLabelBinarizer().fit([*predictions, *references])
    theirs, mine = columns.transform(references), columns.transform(predictions)
    of_average = {"zero_division": 0, "average": "micro"}
    expected = {
        "macro_f1": 100 * sklearn.f1_score(theirs, mine, average="macro", zero_division=0),
        "micro_f1": 100 * sklearn.f1_score(theirs, mine, **of_average),
        "micro_precision": 100 * sklearn.precision_score(theirs, mine, **of_average),
        "micro_recall": 100 * sklearn.recall_score(theirs, mine, **of_average),
        "exact_match": 100 * sklearn.accuracy_score(theirs, mine),
    }
    assert metrics.score("multilabel", predictions, references, "en") == pytest.approx(expected, abs=1e-9)


def probable(probabilities, reference):
    return {
        "probabilities": probabilities,
        "prediction": max(probabilities, key=probabilities.get),
        "reference": reference,
    }


def test_calibration_worked_by_hand():
    rows = [
        *[probable({"a": 0.9, "b": 0.1}, "a")] * 3,
        probable({"a": 0.9, "b": 0.1}, "b"),  # four rows of confidence 90 and accuracy 75
        probable({"a": 0.4, "b": 0.6}, "b"),  # 0.6 = 9/15 belongs to the bin below it, (8/15, 9/15]
        probable({"a": 0.4, "b": 0.6}, "c"),  # a label that the model does not know: wrong with 1 + 0.36 + 0.16
    ]
    found = metrics.calibration(rows)
    assert found["ece"] == pytest.approx((4 * 15 + 2 * 10) / 6)
    assert found["brier"] == pytest.approx((3 * 0.02 + 1.62 + 0.32 + 1.52) / 6)
    [low, high] = found["bins"]
    assert low == pytest.approx({"low": 160 / 3, "high": 60, "rows": 2, "confidence": 60, "accuracy": 50})
    assert high == pytest.approx({"low": 260 / 3, "high": 280 / 3, "rows": 4, "confidence": 90, "accuracy": 75})


def test_brier_score_is_sklearns():
    from sklearn.metrics import brier_score_loss

    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], size=200)
    labels = generator.choice(list("abc"), size=200)
    rows = [
        probable(dict(zip("abc", p.tolist(), strict=True)), label)
        for p, label in zip(probabilities, labels, strict=True)
    ]
    expected = brier_score_loss(labels, probabilities, labels=list("abc"), scale_by_half=False)
    assert metrics.calibration(rows)["brier"] == pytest.approx(expected, abs=1e-12)


def test_a_model_that_knows_its_chances_is_calibrated():
    generator = np.random.default_rng(0)
    chances = generator.random(40_000) * 0.5 + 0.5
    rows = [probable({"a": p, "b": 1 - p}, "a" if generator.random() < p else "b") for p in chances.tolist()]
    assert metrics.calibration(rows)["ece"] < 1
    for row in rows:
        row["reference"] = "b"
    assert metrics.calibration(rows)["ece"] == pytest.approx(75, abs=1)


@pytest.mark.parametrize("fifteenth", range(1, 16))
def test_a_probability_on_the_border_of_two_bins_belongs_to_the_lower_one(fifteenth):
    row = {"prediction": "a", "reference": "a", "probabilities": {"a": fifteenth / 15, "b": 1 - fifteenth / 15}}
    [found] = metrics.calibration([row])["bins"]
    assert found["high"] == pytest.approx(100 * fifteenth / 15)


@pytest.mark.parametrize(
    "probabilities",
    [None, {}, {"a": float("nan")}, {"a": 1.2}, {"b": 1.0}, {"a": 1.0, "b": None}, {"a": 1.0, "b": "0"}],
)
def test_probabilities_that_are_none_are_named(probabilities):
    row = {"probabilities": probabilities, "prediction": "a", "reference": "a"}
    with pytest.raises(UserError, match="row 1: its probabilities are"):
        metrics.calibration([probable({"a": 1.0}, "a"), row])
    with pytest.raises(UserError, match="0 rows"):
        metrics.calibration([])


# ---- regression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_regression_is_scipys_and_sklearns(seed):
    from scipy import stats
    from sklearn import metrics as sklearn

    generator = np.random.default_rng(seed)
    references = generator.integers(0, 6, size=80) / 1.0 + 1000  # many ties, far from 0
    predictions = references + generator.normal(size=80)
    expected = {
        "pearson": 100 * stats.pearsonr(predictions, references).statistic,
        "spearman": 100 * stats.spearmanr(predictions, references).statistic,
        "mae": sklearn.mean_absolute_error(references, predictions),
        "rmse": sklearn.root_mean_squared_error(references, predictions),
    }
    scores = metrics.score("regression", predictions.tolist(), references.tolist(), "en")
    assert scores == pytest.approx(expected, abs=1e-9)


def test_interval_of_spearman_is_that_of_ranking_each_resample_anew():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    references = generator.normal(size=400)
    predictions = references + generator.normal(size=400)
    found = metrics.compute("regression", predictions.tolist(), references.tolist(), "en")["spearman"]
    drawn = [generator.integers(400, size=400) for _ in range(1000)]
    anew = [100 * spearmanr(predictions[rows], references[rows]).statistic for rows in drawn]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(anew, [0.025, 0.975]), abs=0.6)


def test_a_constant_is_warned_of():
    with pytest.warns(UserWarning, match="all predictions are 2"):
        scores = metrics.score("regression", [2.0, 2.0], [1.0, 2.0], "en")
    assert scores == pytest.approx({"pearson": 0, "spearman": 0, "mae": 0.5, "rmse": 0.5**0.5})


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


def test_answerable_and_unanswerable_questions_are_told_apart_where_there_are_both():
    predictions, references = pairs("en", 100)
    answers = [[] if row % 4 == 0 else [text] for row, text in enumerate(references)]
    predictions = ["" if row % 8 == 0 else text for row, text in enumerate(predictions)]
    f1 = np.array([max(squad_f1(p, a) for a in both or [""]) for p, both in zip(predictions, answers, strict=True)])
    without = np.arange(100) % 4 == 0
    scores = metrics.compute("qa", predictions, answers, "en")
    assert scores["f1"]["value"] == pytest.approx(100 * f1.mean())
    assert scores["f1_answerable"]["value"] == pytest.approx(100 * f1[~without].mean())
    assert scores["f1_unanswerable"]["value"] == pytest.approx(100 * f1[without].mean())
    assert set(metrics.score("qa", ["a"], [["a"]], "en")) == {"exact_match", "f1"}
    # Many a resample of two rows has no unanswerable one: those have no score, rather than 0.
    two = metrics.compute("qa", ["x", "y"], [["x"], []], "en")
    assert [two["f1_answerable"][key] for key in ("low", "high")] == [100, 100]


def cmrc_script(prediction, answers):
    """EM and F1 as CMRC 2018's script computes them, by its own steps: segments, then a table of common runs."""
    from nltk import word_tokenize

    punctuation = [*"-:_*^/\\~`+=，。：？！“”；’《》", "……", *"·、「」（）－～『』"]

    def segments(text):
        found, other = [], ""
        for character in text.lower().strip():
            if character in punctuation:
                continue
            if re.search("[\u4e00-\u9fa5]", character):
                found += [*word_tokenize(other, preserve_line=True), character]
                other = ""
            else:
                other += character
        return found + word_tokenize(other, preserve_line=True)

    def common_run(one, two):
        table = np.zeros((len(one) + 1, len(two) + 1), dtype=int)
        for i, j in itertools.product(range(len(one)), range(len(two))):
            if one[i] == two[j]:
                table[i + 1, j + 1] = table[i, j] + 1
        return table.max()

    def f1(answer):
        one, two = segments(answer), segments(prediction)
        longest = common_run(one, two)
        if longest == 0:
            return 0
        precision, recall = longest / len(two), longest / len(one)
        return 2 * precision * recall / (precision + recall)

    def bare(text):
        return "".join(character for character in text.lower().strip() if character not in punctuation)

    return any(bare(prediction) == bare(answer) for answer in answers), max(map(f1, answers))


def mlqa_f1(prediction, answer):
    """F1 of Chinese as MLQA's script computes it: no punctuation, Chinese by characters, the rest at white space."""

    def segments(text):
        kept = (c for c in text.lower() if unicodedata.category(c)[0] != "P" and c not in string.punctuation)
        return re.sub("([\u4e00-\u9fa5])", r" \1 ", "".join(kept)).split()

    predicted, expected = segments(prediction), segments(answer)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def test_chinese_answers_are_mlqas():
    predictions, references = pairs("zh", 300)
    answers = several(references)
    expected = 100 * np.mean([max(mlqa_f1(p, a) for a in texts) for p, texts in zip(predictions, answers, strict=True)])
    assert metrics.score("qa", predictions, answers, "zh")["f1"] == pytest.approx(expected, abs=1e-9)


def test_chinese_answers_are_cmrcs():
    predictions, references = pairs("zh", 300)
    extra = random.Random(1)
    foreign = ["Mr. Wang cannot, e.g.", "2.5%", "《A-B》", " U.S. ", "x……y"]
    predictions = [extra.choice([text, text + extra.choice(foreign)]) for text in predictions]
    answers = several([extra.choice([text, text + extra.choice(foreign)]) for text in references])
    rows = [cmrc_script(prediction, texts) for prediction, texts in zip(predictions, answers, strict=True)]
    scores = metrics.score("qa", predictions, answers, "zh")
    expected = {"cmrc_em": 100 * np.mean([em for em, _ in rows]), "cmrc_f1": 100 * np.mean([f1 for _, f1 in rows])}
    assert 0 < expected["cmrc_em"] < expected["cmrc_f1"] < 100
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert "cmrc_f1" not in metrics.score("qa", ["一", "a"], [["一"], ["a"]], ["zh", "en"])


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
        ("北京大学", ["北京", "清华大学"], "zh", 0, 200 / 3),  # two characters of four and of two
        ("le chat noir", ["Chat noir.", "un chien"], "fr", 100, 100),
        ("", [], "en", 100, 100),
        ("something", [], "en", 0, 0),
        ("", ["Paris"], "fr", 0, 0),
        ("", ["the", "cat"], "en", 0, 0),  # an answer that is all article is no way to be right by silence
    ],
)
def test_answers_worked_by_hand(prediction, answers, language, exact, f1):
    scores = metrics.score("qa", [prediction], [answers], language)
    assert [scores["exact_match"], scores["f1"]] == pytest.approx([exact, f1], abs=1e-9)


# ---- summarization ----------------------------------------------------------------------------------------------------


ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


@pytest.mark.parametrize("multiple", [False, True])
def test_rouge_on_ascii_is_rouge_score(multiple):
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = pairs("en", 200)
    lists = several(references) if multiple else [[text] for text in references]
    scorer = RougeScorer(ROUGE, use_stemmer=False)

    def lines(text):
        return "\n".join(metrics.sentences(text))

    rows = [
        scorer.score_multi([lines(text) for text in texts], lines(prediction))
        for prediction, texts in zip(predictions, lists, strict=True)
    ]
    expected = {name: 100 * np.mean([row[name].fmeasure for row in rows]) for name in ROUGE}
    scores = metrics.score("summarization", predictions, lists if multiple else references, "en")
    assert scores == pytest.approx(expected, abs=1e-9)
    assert scores["rougeLsum"] > scores["rougeL"] + 1  # the texts have several sentences
    signature = metrics.compute("summarization", predictions[:2], lists[:2], "en", resamples=2)["rouge1"]["signature"]
    assert ("refs:best" in signature) == any(len(texts) > 1 for texts in lists[:2])


def test_sentences_of_a_summary_end_where_its_language_says():
    # The second sentences are swapped: in order half is common, by sentences all is.
    for language, first, second in (
        ("en", "One two.", "Three four."),
        ("fr", "Un œuf !", "L'été."),
        ("zh", "我爱。", "他去！"),
    ):
        space = "" if language == "zh" else " "
        swapped = metrics.score("summarization", [second + space + first], [first + space + second], language)
        assert swapped["rougeL"] == pytest.approx(50) and swapped["rougeLsum"] == pytest.approx(100)


def test_words_of_three_languages():
    assert metrics.words("L’Été à Besançon, en e\u0301te\u0301") == ["l", "été", "à", "besançon", "en", "été"]
    assert metrics.words("在２０２４年学Python_3") == ["在", "2024", "年", "学", "python", "3"]


def test_rouge_of_chinese_worked_by_hand():
    scores = metrics.score("summarization", ["我爱北京"], ["我爱上海"], "zh")  # 2 of 4 characters, 1 of 3 pairs
    assert scores == pytest.approx({"rouge1": 50, "rouge2": 100 / 3, "rougeL": 50, "rougeLsum": 50})


def test_a_text_that_the_tokenizer_drops_is_warned_of():
    with pytest.warns(UserWarning, match="rouge: the tokenizer keeps nothing of 2 texts, such as '♥♥♥'"):
        metrics.score("summarization", ["♥♥♥"], ["♥♥"], "en")
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
    scores = metrics.score("ner", predictions, references, "en")
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)
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
    with pytest.warns(UserWarning, match="1 references, such as row 1, hold an I- that continues nothing"):
        metrics.score("ner", [["O"], ["B-PER"]], [["O"], ["I-PER"]], "en")


@pytest.mark.parametrize(
    ("predicted", "expected", "credit"),
    [
        ("BIO BIO", "BIO BIO", 2),
        ("BIO OOO", "OOO BIO", 0),  # they touch nowhere
        ("BII", "OBI", 0.5),
        ("BIB", "BII", 0.5),  # the second one finds the entity taken
        ("BII", "BIB", 0.5),
        ("BBI", "BII", 0.5),  # from the left, the first one takes the entity
        ("BIBI", "OBIB", 1),
        ("BIIII", "BBBIO", 0.5),
        ("OBII", "BBII", 1),
    ],
)
def test_partial_credit_worked_by_hand(predicted, expected, credit):
    """In nervaluate's terms, correct + partial / 2."""
    both = [[x if x == "O" else f"{x}-PER" for x in tags.replace(" ", "")] for tags in (predicted, expected)]
    assert partial_credit(*map(metrics.entities, both)) == credit
    num_entities = sum(tags.count("B") for tags in (predicted, expected))
    score = metrics.score("ner", [both[0]], [both[1]], "en")["entity_partial_f1"]
    assert score == pytest.approx(100 * 2 * credit / num_entities)


def test_partial_credit_is_blind_to_types_but_within_one():
    predicted, expected = ["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "I-LOC", "O", "B-LOC"]
    assert metrics.score("ner", [predicted], [expected], "en")["entity_partial_f1"] == 100
    table = metrics.entity_table([predicted], [expected])
    assert [(row["label"], row["partial_f1"]) for row in table] == [("LOC", pytest.approx(200 / 3)), ("PER", 0)]


# ---- all families -----------------------------------------------------------------------------------------------------

LABELS = ["a", "b", "a", "b", "a", "b", "a", "b", "c"]
PERFECT = {
    "translation": (ALL, ALL),
    "classification": (LABELS, LABELS),
    "multilabel": ([[label, "x"] for label in LABELS], [["x", label] for label in LABELS]),
    "regression": ([1.0, 2, 3, 4, 5, 7, 7, 8, 9], [1.0, 2, 3, 4, 5, 7, 7, 8, 9]),
    "qa": (ALL, [[text] for text in ALL]),
    "summarization": (ALL, ALL),
    "ner": ([["B-PER", "I-PER", "O"]] * 9, [["B-PER", "I-PER", "O"]] * 9),
}
ERRORS = ("mae", "rmse")
MODULES = {"translation": "bleu", "qa": "squad", "summarization": "rouge", "ner": "entity_f1"}


def mixed(family):
    """Predictions of middling quality."""
    predictions, references = PERFECT[family]
    return [*predictions[:5], predictions[0], *predictions[6:]], references


@pytest.mark.parametrize("family", metrics.FAMILIES)
@pytest.mark.parametrize("language", TEXTS)
def test_gold_scores_100_in_each_language(family, language):
    rows = [row for row, other in enumerate(LANGUAGES) if other == language][:2]
    predictions, references = ([part[row] for row in rows] for part in PERFECT[family])
    for name, entry in metrics.compute(family, predictions, references, language).items():
        perfect = 0 if name in ERRORS else 100
        assert entry["value"] == entry["high"] == pytest.approx(perfect)
        if name not in ("mcc", "pearson", "spearman"):  # of two rows drawn, both may be the same
            assert entry["low"] == pytest.approx(perfect)


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


def test_a_difference_is_that_of_the_two_scores():
    for family, name in (("regression", "spearman"), ("regression", "pearson"), ("translation", "bleu")):
        a, references = mixed(family)
        b = [*a[1:2], *a[1:]]
        found = metrics.difference(family, name, a, b, references, LANGUAGES)
        scores = [metrics.score(family, predictions, references, LANGUAGES)[name] for predictions in (a, b)]
        assert found["value"] == pytest.approx(scores[0] - scores[1]) and found["detectable"] > 0


def right(predictions, references, languages):
    return np.array([[p == r, 1] for p, r in zip(predictions, references, strict=True)], dtype=float)


OWN = (metrics.Metric("hits", right, lambda sums: 100 * sums[..., 0] / sums[..., 1], lambda refs, langs: "exact"),)


def test_metrics_of_ones_own_are_scored_like_a_family():
    found = metrics.compute(OWN, [1, 2, 4], [1, 2, 3], "en")
    assert found["hits"]["value"] == metrics.score(OWN, [1, 2, 4], [1, 2, 3], "en")["hits"] == pytest.approx(200 / 3)
    assert metrics.difference(OWN, "hits", [1, 2, 3], [1, 2, 4], [1, 2, 3], "en")["value"] == pytest.approx(100 / 3)
    with pytest.raises(UserError, match="'hit': is not one of the task's metrics; did you mean 'hits'"):
        metrics.get(OWN, "hit")


class Sixth(Task):
    """A task in one file: metrics and baselines of its own, no `evaluate` module."""

    name = "sixth"
    metrics = OWN
    primary_metric = "hits"
    baselines = {"always 1": lambda train, test: [1 for _ in test]}


class Seventh(Sixth):
    metrics = "classification"
    primary_metric = "accuracy"
    baselines = None


def test_a_task_says_itself_how_it_is_scored():
    examples = [Example(str(n), "en", {}, n % 3) for n in range(30)]
    given = predict.baseline_predictions(Sixth(), examples, examples)
    assert given == {"always 1": [1] * 30} and predict.baseline_predictions(Seventh(), examples, examples) == {}
    rows = [
        {"input": {}, "prediction": 2, "reference": e.reference, "lang": "en", "baselines": {"always 1": 1}}
        for e in examples[1:]
    ]
    found = predict.scores(Sixth(), rows, seed=0)
    assert found["scores"]["hits"]["value"] == found["by_language"]["en"]["scores"]["hits"]["value"]
    assert found["scores"]["hits"]["value"] == pytest.approx(100 * 10 / 29)
    assert found["baselines"]["always 1"]["difference"]["value"] == 0
    labelled = [{**row, "prediction": "2", "reference": str(row["reference"]), "baselines": {}} for row in rows]
    assert predict.scores(Seventh(), labelled, seed=0)["scores"]["accuracy"]["value"] == pytest.approx(100 * 10 / 29)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("translations", ["a"], ["a"], "en"), "did you mean 'translation'"),
        (("translation", ["a"], ["a"], "zho"), "language 'zho'.*did you mean 'zh'"),
        (("translation", ["a"], ["a", "b"], "en"), "1 predictions, 2 references"),
        (("qa", [], [], "en"), "0 rows"),
        (("translation", [None], ["a"], "en"), "row 0: the prediction is None"),
        (("translation", ["a", "b"], ["a", ""], "en"), "row 1: the reference is ''"),
        (("summarization", ["a", "b"], [["a"], []], "en"), r"row 1: the reference is \[\]"),
        (("summarization", ["a"], [["a", " "]], "fr"), "row 0: the reference is"),
        (("classification", [float("nan")], ["a"], "en"), "row 0: the predicted label is nan"),
        (("multilabel", ["a"], [["a"]], "en"), "row 0: the predicted labels are 'a'"),
        (("regression", [1.0, float("nan")], [1.0, 2.0], "en"), "row 1: the prediction is nan"),
        (("regression", [1.0], [None], "en"), "row 0: the reference is None"),
        (("qa", ["a", None], [["a"], ["b"]], "en"), "row 1: the predicted answer is None"),
        (("qa", ["a"], ["a"], "en"), "row 0: the answers are 'a'"),
        (("qa", ["a"], [None], "en"), "row 0: the answers are None"),
        (("multilabel", [["a"], None], [["a"], ["a"]], "en"), "row 1: the predicted labels are None"),
        (("multilabel", [["a"]], [[7]], "en"), r"row 0: the reference labels are \[7\]"),
        (("translation", ["a"], [float("nan")], "en"), "row 0: the reference is nan"),
        (("ner", [None], [["O"]], "en"), "row 0: the predicted tags are None"),
        (("ner", [["S-PER"]], [["O"]], "en"), "'S-PER'.*IOB2"),
        (("ner", [["O", "O"]], [["O"]], "en"), "row 0: 2 predicted tags for 1 tokens"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        metrics.score(*arguments)


def test_what_scores_nothing_for_another_reason_is_said_and_kept():
    """Tags of another scheme, no entity at all, and texts that a tokenizer drops: a warning each, which a report keeps."""
    iob1 = [["I-PER", "I-PER", "O"]]
    with pytest.warns(UserWarning, match="1 predictions, such as row 0, hold an I- that continues nothing"):
        assert metrics.score("ner", iob1, [["B-PER", "I-PER", "O"]], "en")["entity_f1"] == 0
    with pytest.warns(UserWarning, match="the references hold none at all"):
        metrics.score("ner", [["O"]], [["O"]], "en")
    row = {"input": {"document": "a"}, "prediction": "a", "reference": "♥♥♥", "lang": "en", "baselines": {"lead": "a"}}
    found = predict.scores(get_task("summarization"), [row] * 3, seed=0)
    assert len(found["warnings"]) == 1 and "the tokenizer keeps nothing of" in found["warnings"][0]
    assert predict.scores(get_task("summarization"), [{**row, "reference": "a"}], seed=0)["warnings"] == []


def test_an_error_says_that_it_is_one():
    found = metrics.compute("regression", [1.0, 2.5, 3.0], [1.0, 2.0, 4.0], "en")
    assert {name for name, score in found.items() if score.get("higher_is_better", True)} == {"pearson", "spearman"}
    assert not get_task("translation").validation_rises and get_task("regression").validation_rises

    class Errors(Sixth):
        metrics, primary_metric = "regression", "rmse"

    assert not Errors().validation_rises


def test_sentences_of_many_dots_end():
    """A search that begins anew at every dot would take the better part of an hour."""
    dots = "." * 200_000
    assert metrics.sentences(f"a{dots}b. C") == [f"a{dots}b.", "C"]


@pytest.mark.parametrize("family", metrics.FAMILIES)
def test_evaluate_modules_load_offline_and_agree(family, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictions, references = mixed(family)
    module = modules.load(MODULES.get(family, family))
    assert module.compute(predictions=predictions, references=references, languages=LANGUAGES) == pytest.approx(
        metrics.score(family, predictions, references, LANGUAGES), abs=1e-9
    )
    one = module.compute(predictions=predictions[:3], references=references[:3], languages="en")
    assert one == pytest.approx(metrics.score(family, predictions[:3], references[:3], "en"), abs=1e-9)


@pytest.mark.parametrize("family", ["translation", "summarization"])
def test_evaluate_modules_take_several_references(family):
    lists = [[text, *ALL[:row]] for row, text in enumerate(ALL)]
    predictions = [ALL[0]] * len(ALL)
    found = modules.load(MODULES[family]).compute(predictions=predictions, references=lists, languages=LANGUAGES)
    assert found == pytest.approx(metrics.score(family, predictions, lists, LANGUAGES))
    assert found != pytest.approx(metrics.score(family, predictions, ALL, LANGUAGES))


def test_an_unknown_module_is_named():
    with pytest.raises(UserError, match="did you mean 'rouge'"):
        modules.load("rogue")
