"""Five families of metrics, exact in English, French and Chinese, each with its interval.

Every metric is split in two: `statistics` turns each segment into a row of numbers, `aggregate` turns the *sum* of rows
into the corpus score. The score, its bootstrap interval and every paired test come from the same two functions. Scores
are percentages, 0 to 100.

| family | metrics | definition |
|---|---|---|
| translation | bleu, chrf, chrf++ | sacreBLEU's own classes; tokenizer `zh` for Chinese, `13a` otherwise |
| classification | accuracy, macro_f1, micro_f1, macro_precision, macro_recall, weighted_f1 | scikit-learn's, over the labels that occur |
| qa | exact_match, f1 | SQuAD 2.0, see `answer_tokens` for the three languages |
| summarization | rouge1, rouge2, rougeL | rouge_score's F-measure without stemmer, mean over segments, see `words` |
| ner | entity_f1, entity_precision, entity_recall | seqeval's strict mode, IOB2, micro average |
"""

from __future__ import annotations

import importlib.metadata
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from septet.data.errors import UserError, suggestion
from septet.tasks.harness.statistics import RESAMPLES, compare, interval, resample

LANGUAGES = ("en", "fr", "zh")
HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
ENTITY_TAG = re.compile(r"O|[BI]-.+")
ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
FRENCH_ARTICLES = re.compile(r"\b(le|la|les|du|des|au|aux|un|une)\b")


@dataclass(frozen=True)
class Metric:
    """A corpus score as a function of statistics that add up over segments."""

    name: str
    statistics: Callable[[Sequence[Any], Sequence[Any], Sequence[str]], np.ndarray]
    """(predictions, references, language of each segment) -> (num_segments, k)."""
    aggregate: Callable[[np.ndarray], np.ndarray]
    """Summed statistics (..., k) -> scores (...), 0 to 100."""
    signature: Callable[[Sequence[str]], str]
    """The languages that occur -> what must be equal for two scores to be comparable."""
    higher_is_better: bool = True


# ---- what the rest of the project calls -------------------------------------------------------------------------------


def compute(
    family: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    languages: str | Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Every metric of a family with its 95 % bootstrap interval.

    Args:
        family: a key of `FAMILIES`.
        predictions: str (translation, summarization, classification, qa) or list[str] of IOB2 tags (ner).
        references: the same, but for qa list[str] of accepted answers, empty where there is none.
        languages: of each segment's *reference*, or one for all.

    Returns:
        {metric: {"value", "low", "high", "signature"}}.

    Raises:
        UserError: numbers of rows differ, there are none, a language or family is unknown, tags are not IOB2.
    """
    languages = _checked(family, predictions, references, languages)
    statistics, resampled, scores = {}, {}, {}
    for metric in FAMILIES[family]:
        if metric.statistics not in statistics:
            statistics[metric.statistics] = metric.statistics(predictions, references, languages)
            resampled[metric.statistics] = resample(statistics[metric.statistics], seed, resamples)
        low, high = interval(metric.aggregate(resampled[metric.statistics]))
        value = float(metric.aggregate(statistics[metric.statistics].sum(0)))
        signature = metric.signature(sorted(set(languages)))
        scores[metric.name] = {"value": value, "low": low, "high": high, "signature": signature}
    return scores


def score(
    family: str, predictions: Sequence[Any], references: Sequence[Any], languages: str | Sequence[str]
) -> dict[str, float]:
    """`compute` without the intervals: {metric: value}."""
    languages = _checked(family, predictions, references, languages)
    totals = {}
    for metric in FAMILIES[family]:
        if metric.statistics not in totals:
            totals[metric.statistics] = metric.statistics(predictions, references, languages).sum(0)
    return {metric.name: float(metric.aggregate(totals[metric.statistics])) for metric in FAMILIES[family]}


def difference(
    family: str,
    name: str,
    predictions_a: Sequence[Any],
    predictions_b: Sequence[Any],
    references: Sequence[Any],
    languages: str | Sequence[str],
    seed: int = 0,
) -> dict[str, float]:
    """Metric `name` of system A minus system B: {"value", "low", "high", "p_value"}, see `statistics.compare`."""
    languages = _checked(family, predictions_a, references, languages)
    _checked(family, predictions_b, references, languages)
    metric = get(family, name)
    # Both systems in one call, so that the columns of a label that only one of them predicts agree.
    both = metric.statistics([*predictions_a, *predictions_b], [*references, *references], [*languages, *languages])
    return compare(metric, both[: len(references)], both[len(references) :], seed)


def get(family: str, name: str) -> Metric:
    """The metric of that name.

    Raises:
        UserError: there is none; the message suggests one.
    """
    named = {metric.name: metric for metric in FAMILIES[family]}
    if name not in named:
        raise UserError(f"metric {name!r}: is not one of {family}; {suggestion(name, named)}")
    return named[name]


def _checked(
    family: str, predictions: Sequence[Any], references: Sequence[Any], languages: str | Sequence[str]
) -> list[str]:
    """The language of each segment, after all checks that the families share."""
    if family not in FAMILIES:
        raise UserError(f"metric family {family!r}: is unknown; {suggestion(family, FAMILIES)}")
    if not len(references):
        raise UserError("0 rows: a score needs at least one; give a test set that is not empty")
    languages = [languages] * len(references) if isinstance(languages, str) else list(languages)
    if not len(predictions) == len(references) == len(languages):
        raise UserError(
            f"{len(predictions)} predictions, {len(references)} references, {len(languages)} languages: "
            "their numbers must be equal; score the file that the references were read with"
        )
    for language in sorted(set(languages) - set(LANGUAGES)):
        raise UserError(
            f"language {language!r}: metrics are defined for en, fr and zh; {suggestion(language, LANGUAGES)}"
        )
    return languages


# ---- tokens -----------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words for ROUGE: runs of letters and digits of any script, each Chinese character by itself.

    The text is normalised by NFKC first. On ASCII this is what rouge_score's own tokenizer gives, which keeps nothing but
    a-z and 0-9, so that it cuts French words at their accents and leaves nothing of Chinese.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def answer_tokens(text: str, language: str) -> list[str]:
    """Tokens of an answer after SQuAD's normalisation; two answers match exactly if their tokens are equal.

    - en: the official SQuAD script: lower case, ASCII punctuation deleted, *a an the* deleted, split at white space.
    - fr: the same with the articles of FQuAD (d'Hoffschmidt et al. 2020): *le la les l' du des au aux un une*; *l'* goes
      before the apostrophe does, and all Unicode punctuation is deleted (« » ’ …).
    - zh: CMRC 2018's segments (Cui et al. 2019), as MLQA scores them: lower case, all Unicode punctuation deleted, each
      Chinese character a token, everything else split at white space. F1 is SQuAD's overlap of these tokens; CMRC's own
      script takes their longest common substring.
    """
    text = text.lower()
    if language == "en":
        text = text.translate(_ASCII_PUNCTUATION)
        return ENGLISH_ARTICLES.sub(" ", text).split()
    if language == "fr":
        text = re.sub(r"\bl['’]", " ", text)
        return FRENCH_ARTICLES.sub(" ", _without_punctuation(text)).split()
    return re.sub(rf"([{HAN}])", r" \1 ", _without_punctuation(text)).split()


_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _without_punctuation(text: str) -> str:
    kept = text.translate(_ASCII_PUNCTUATION)
    return "".join(character for character in kept if unicodedata.category(character)[0] != "P")


def _warn_of_dropped(metric: str, texts: Iterable[str], tokens: Iterable[Sequence[str]]) -> None:
    """Warns of texts that are not blank but have no token: whatever is predicted for them, they score nothing."""
    lost = [text for text, kept in zip(texts, tokens, strict=True) if text.strip() and not kept]
    if lost:
        warnings.warn(
            f"{metric}: the tokenizer keeps nothing of {len(lost)} texts, such as {lost[0][:40]!r}; check their language",
            stacklevel=3,
        )


# ---- translation ------------------------------------------------------------------------------------------------------


@cache
def _bleu(language: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(trg_lang=language)


@cache
def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


def _bleu_statistics(predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 10): lengths of prediction and reference, matches and totals of 1- to 4-grams."""
    statistics = np.empty((len(references), 10))
    for language in set(languages):
        rows = [row for row, other in enumerate(languages) if other == language]
        statistics[rows] = _bleu(language)._extract_corpus_statistics(
            [predictions[row] for row in rows], [[references[row] for row in rows]]
        )
    return statistics


def _chrf_statistics(predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 24): predicted, reference and matching n-grams: characters of order 1 to 6, words of 1 and 2."""
    return np.array(_chrf(2)._extract_corpus_statistics(predictions, [references]), dtype=float)


def _bleu_score(sums: np.ndarray) -> np.ndarray:
    bleu = _bleu("en")  # the formula is one for all tokenizers
    return np.apply_along_axis(lambda row: bleu._compute_score_from_stats(row.tolist()).score, -1, sums)


def _chrf_score(sums: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda row: _chrf(0)._compute_f_score(row.tolist()), -1, sums[..., :18])


def _chrf_plus_plus_score(sums: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda row: _chrf(2)._compute_f_score(row.tolist()), -1, sums)


def _sacrebleu_signature(metric_of: Callable[[str], Any]) -> Callable[[Sequence[str]], str]:
    def signature(languages: Sequence[str]) -> str:
        by_text: dict[str, list[str]] = {}
        for language in languages:
            metric = metric_of(language)
            metric.num_refs = 1
            by_text.setdefault(str(metric.get_signature()), []).append(language)
        if len(by_text) == 1:
            return next(iter(by_text))
        return "; ".join(f"{'+'.join(group)}: {text}" for text, group in by_text.items())

    return signature


# ---- classification ---------------------------------------------------------------------------------------------------


def _label_statistics(predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 3 * num_labels): hits, predictions and references of each label that occurs."""
    labels = {label: column for column, label in enumerate(sorted({*predictions, *references}))}
    one_hot = np.eye(len(labels))
    predicted = one_hot[[labels[label] for label in predictions]]
    expected = one_hot[[labels[label] for label in references]]
    return np.concatenate([predicted * expected, predicted, expected], axis=1)


def _by_label(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed label statistics -> hits, predictions, references, each (..., num_labels)."""
    return tuple(np.split(sums, 3, axis=-1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Percentage, 0 where the denominator is."""
    return 100 * np.divide(numerator, denominator, out=np.zeros_like(denominator, dtype=float), where=denominator != 0)


def _macro(values: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Mean over the labels that occur: a resample without any trace of a label is scored as scikit-learn would."""
    _, predicted, expected = _by_label(sums)
    occurs = predicted + expected > 0
    return (values * occurs).sum(-1) / occurs.sum(-1)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    hits, _, expected = _by_label(sums)
    return _ratio(hits.sum(-1), expected.sum(-1))


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = (part.sum(-1) for part in _by_label(sums))
    return _ratio(2 * hits, predicted + expected)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = _by_label(sums)
    return _macro(_ratio(2 * hits, predicted + expected), sums)


def _macro_precision(sums: np.ndarray) -> np.ndarray:
    hits, predicted, _ = _by_label(sums)
    return _macro(_ratio(hits, predicted), sums)


def _macro_recall(sums: np.ndarray) -> np.ndarray:
    hits, _, expected = _by_label(sums)
    return _macro(_ratio(hits, expected), sums)


def _weighted_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = _by_label(sums)
    return (_ratio(2 * hits, predicted + expected) * expected).sum(-1) / expected.sum(-1)


def class_table(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """[{"label", "precision", "recall", "f1", "support"}] of each label that occurs, by name; 0 to 100, support in rows."""
    sums = _label_statistics(predictions, references, ()).sum(0)
    return _table(sorted({*predictions, *references}), *_by_label(sums))


def confusion(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """{"labels": [...], "matrix": [[rows]]}, a row a reference label, a column a predicted one."""
    labels = sorted({*predictions, *references})
    counts = Counter(zip(references, predictions, strict=True))
    return {"labels": labels, "matrix": [[counts[row, column] for column in labels] for row in labels]}


def _table(
    labels: Sequence[str], hits: np.ndarray, predicted: np.ndarray, expected: np.ndarray
) -> list[dict[str, Any]]:
    precision, recall = _ratio(hits, predicted), _ratio(hits, expected)
    columns = zip(labels, precision, recall, _ratio(2 * hits, predicted + expected), expected, strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(support)}
        for label, p, r, f1, support in columns
    ]


# ---- question answering -----------------------------------------------------------------------------------------------


def _answer_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 3): exact match and F1 with the best reference, 0 to 1, and the constant 1.

    As in SQuAD 2.0 a question without accepted answers expects the empty one, and empty is right or wrong, nothing between.
    """
    tokens = {
        (text, language): answer_tokens(text, language)
        for prediction, answers, language in zip(predictions, references, languages, strict=True)
        for text in (prediction, *answers)
    }
    _warn_of_dropped("exact_match and f1", (text for text, _ in tokens), tokens.values())
    statistics = np.ones((len(references), 3))
    for row, (prediction, answers, language) in enumerate(zip(predictions, references, languages, strict=True)):
        predicted = tokens[prediction, language]
        accepted = [tokens[answer, language] for answer in answers if tokens[answer, language]] or [[]]
        statistics[row, 0] = predicted in accepted
        statistics[row, 1] = max(_overlap_f1(predicted, answer) for answer in accepted)
    return statistics


def _overlap_f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (Counter(predicted) & Counter(expected)).total() / (len(predicted) + len(expected))


# ---- summarization ----------------------------------------------------------------------------------------------------


class _Words:
    """`words` in the shape that rouge_score asks of a tokenizer."""

    tokenize = staticmethod(words)


def _rouge_statistics(predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 4): F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1, and the constant 1."""
    from rouge_score.rouge_scorer import RougeScorer

    texts = [*predictions, *references]
    _warn_of_dropped("rouge", texts, map(words, texts))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    return np.array(
        [
            [*(part.fmeasure for part in scorer.score(reference, prediction).values()), 1.0]
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    )


def _mean_of(column: int) -> Callable[[np.ndarray], np.ndarray]:
    """Mean over segments of a column; the last column counts the segments."""
    return lambda sums: 100 * sums[..., column] / sums[..., -1]


# ---- named entities ---------------------------------------------------------------------------------------------------


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, start, end) of the entities in IOB2 tags, in tokens, `end` exclusive.

    Strict: an entity begins with B and goes on over I of its type; an I that continues nothing belongs to no entity.
    """
    found, start = set(), None
    for position, tag in enumerate([*tags, "O"]):
        if start is not None and tag != "I-" + tags[start][2:]:
            found.add((tags[start][2:], start, position))
            start = None
        if tag.startswith("B-"):
            start = position
    return found


def _entities_of_both(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[tuple[set[tuple[str, int, int]], set[tuple[str, int, int]]]]:
    """Entities of prediction and reference of each segment, after a check of the tags."""
    for tag in sorted({tag for sequences in (predictions, references) for tags in sequences for tag in tags}):
        if not ENTITY_TAG.fullmatch(tag):
            raise UserError(f"tag {tag!r}: tags must be IOB2, that is O, B-TYPE or I-TYPE; convert the column ner_tags")
    for row, (predicted, expected) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(expected):
            raise UserError(
                f"row {row}: {len(predicted)} predicted tags for {len(expected)} tokens; there must be one a token, "
                "with O for tokens that were cut off"
            )
    return [
        (entities(predicted), entities(expected)) for predicted, expected in zip(predictions, references, strict=True)
    ]


def _entity_statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 3): entities that are right, predicted, and in the reference."""
    both = _entities_of_both(predictions, references)
    return np.array([[len(predicted & expected), len(predicted), len(expected)] for predicted, expected in both], float)


def _entity_f1(sums: np.ndarray) -> np.ndarray:
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _entity_precision(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[..., 0], sums[..., 1])


def _entity_recall(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[..., 0], sums[..., 2])


def entity_table(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """`class_table` by entity type; support in entities."""
    hits, predicted, expected = Counter(), Counter(), Counter()
    for in_prediction, in_reference in _entities_of_both(predictions, references):
        hits.update(kind for kind, _, _ in in_prediction & in_reference)
        predicted.update(kind for kind, _, _ in in_prediction)
        expected.update(kind for kind, _, _ in in_reference)
    types = sorted({*predicted, *expected})
    return _table(types, *(np.array([counts[kind] for kind in types], float) for counts in (hits, predicted, expected)))


# ---- the registry -----------------------------------------------------------------------------------------------------


def _fixed(text: str) -> Callable[[Sequence[str]], str]:
    return lambda languages: text


def _qa_signature(languages: Sequence[str]) -> str:
    return f"squad:2.0|lang:{'+'.join(languages)}|refs:best"


def _rouge_signature(languages: Sequence[str]) -> str:
    version = importlib.metadata.version("rouge-score")
    return f"rouge_score:{version}|tok:words+han-characters|case:lc|norm:nfkc|stem:no|f:mean"


def _classification(name: str, aggregate: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(name, _label_statistics, aggregate, _fixed("labels:occurring|zero_division:0"))


def _summarization(name: str, column: int) -> Metric:
    return Metric(name, _rouge_statistics, _mean_of(column), _rouge_signature)


def _ner(name: str, aggregate: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(name, _entity_statistics, aggregate, _fixed("mode:strict|scheme:IOB2|average:micro"))


FAMILIES: dict[str, tuple[Metric, ...]] = {
    "translation": (
        Metric("bleu", _bleu_statistics, _bleu_score, _sacrebleu_signature(_bleu)),
        Metric("chrf", _chrf_statistics, _chrf_score, _sacrebleu_signature(lambda language: _chrf(0))),
        Metric("chrf++", _chrf_statistics, _chrf_plus_plus_score, _sacrebleu_signature(lambda language: _chrf(2))),
    ),
    "classification": (
        _classification("accuracy", _accuracy),
        _classification("macro_f1", _macro_f1),
        _classification("micro_f1", _micro_f1),
        _classification("macro_precision", _macro_precision),
        _classification("macro_recall", _macro_recall),
        _classification("weighted_f1", _weighted_f1),
    ),
    "qa": (
        Metric("exact_match", _answer_statistics, _mean_of(0), _qa_signature),
        Metric("f1", _answer_statistics, _mean_of(1), _qa_signature),
    ),
    "summarization": (_summarization("rouge1", 0), _summarization("rouge2", 1), _summarization("rougeL", 2)),
    "ner": (
        _ner("entity_f1", _entity_f1),
        _ner("entity_precision", _entity_precision),
        _ner("entity_recall", _entity_recall),
    ),
}
