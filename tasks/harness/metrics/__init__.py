"""Families of metrics, exact in English, French and Chinese, each score with its interval.

Every metric is split in two: `statistics` turns each segment into a row of numbers, `aggregate` turns the *sum* of rows
into the corpus score. The score, its bootstrap interval and every paired test come from the same two functions. Scores
are percentages, 0 to 100; correlations (mcc, pearson, spearman) go from -100 to 100, and errors (mae, rmse) have the unit
of what was predicted.

| family | metrics | definition |
|---|---|---|
| translation | bleu, chrf, chrf++ | sacreBLEU's own classes; tokenizer `zh` for Chinese, `13a` otherwise |
| classification | accuracy, macro_f1, micro_f1, macro_precision, macro_recall, weighted_f1, mcc | scikit-learn's, over the labels that occur |
| multilabel | macro_f1, micro_f1, micro_precision, micro_recall, exact_match | scikit-learn's, over the labels that occur |
| regression | pearson, spearman, mae, rmse | scipy's and scikit-learn's |
| qa | exact_match, f1 | SQuAD 2.0, see `answer_tokens` for the three languages |
| | f1_answerable, f1_unanswerable | the same by kind of question, where there are both |
| | cmrc_em, cmrc_f1 | CMRC 2018's own script (Cui et al. 2019), where all is Chinese and has answers |
| summarization | rouge1, rouge2, rougeL, rougeLsum | rouge_score's F-measure without stemmer, mean over segments, see `words` |
| ner | entity_f1, entity_precision, entity_recall | seqeval's strict mode, IOB2, micro average |
| | entity_partial_f1 | SemEval-2013's "partial", as nervaluate has it |

A task takes the family of its name, another one's, or metrics of its own (`Task.metrics`): everything here takes a family's
name or a tuple of `Metric`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from septet.data.errors import UserError, suggestion
from septet.tasks.harness.metrics import classification, ner, qa, regression, summarization, translation
from septet.tasks.harness.metrics.classification import calibration, class_table, confusion
from septet.tasks.harness.metrics.core import Metric
from septet.tasks.harness.metrics.ner import entities, entity_table
from septet.tasks.harness.metrics.qa import answer_tokens, overlap_f1
from septet.tasks.harness.metrics.tokens import HAN, sentences, words
from septet.tasks.harness.statistics import RESAMPLES, compare, interval, resample

__all__ = [
    "FAMILIES", "HAN", "LANGUAGES", "Metric", "answer_tokens", "calibration", "class_table", "compute", "confusion",
    "difference", "entities", "entity_table", "get", "overlap_f1", "score", "sentences", "words",
]  # fmt: skip

LANGUAGES = ("en", "fr", "zh")
FAMILIES: dict[str, tuple[Metric, ...]] = {
    "translation": translation.METRICS,
    "classification": classification.METRICS,
    "multilabel": classification.MULTILABEL,
    "regression": regression.METRICS,
    "qa": qa.METRICS,
    "summarization": summarization.METRICS,
    "ner": ner.METRICS,
}
Family: TypeAlias = str | tuple[Metric, ...]


def compute(
    family: Family,
    predictions: Sequence[Any],
    references: Sequence[Any],
    languages: str | Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Every metric of a family that applies to these rows, with its 95 % bootstrap interval.

    Args:
        family: a key of `FAMILIES`, or the metrics themselves.
        predictions: str (translation, summarization, classification, qa), list[str] of labels (multilabel) or of IOB2 tags
            (ner), float (regression).
        references: the same; for translation and summarization perhaps list[str], for qa always: the accepted answers,
            empty where there is none.
        languages: of each segment's *reference*, or one for all.

    Returns:
        {metric: {"value", "low", "high", "signature"}}; an error also has {"higher_is_better": False}.

    Raises:
        UserError: numbers of rows differ, there are none, a language or family is unknown, a row lacks its prediction or
            reference, tags are not IOB2, a number is not finite.
    """
    languages = _checked(family, predictions, references, languages)
    statistics, resampled, scores = {}, {}, {}
    for metric in _applying(family, references, languages):
        if metric.statistics not in statistics:
            statistics[metric.statistics] = metric.statistics(predictions, references, languages)
            resampled[metric.statistics] = resample(statistics[metric.statistics], seed, resamples)
        value = float(metric.aggregate(statistics[metric.statistics].sum(0)))
        low, high = interval(metric.aggregate(resampled[metric.statistics]), value)
        signature = metric.signature(references, languages)
        scores[metric.name] = {"value": value, "low": low, "high": high, "signature": signature}
        if not metric.higher_is_better:
            scores[metric.name]["higher_is_better"] = False
    return scores


def score(
    family: Family, predictions: Sequence[Any], references: Sequence[Any], languages: str | Sequence[str]
) -> dict[str, float]:
    """`compute` without the intervals: {metric: value}."""
    languages = _checked(family, predictions, references, languages)
    totals, scores = {}, {}
    for metric in _applying(family, references, languages):
        if metric.statistics not in totals:
            totals[metric.statistics] = metric.statistics(predictions, references, languages).sum(0)
        scores[metric.name] = float(metric.aggregate(totals[metric.statistics]))
    return scores


def difference(
    family: Family,
    name: str,
    predictions_a: Sequence[Any],
    predictions_b: Sequence[Any],
    references: Sequence[Any],
    languages: str | Sequence[str],
    seed: int = 0,
) -> dict[str, float]:
    """Metric `name` of system A minus system B: {"value", "low", "high", "p_value", "detectable"}, see `statistics.compare`."""
    languages = _checked(family, predictions_a, references, languages)
    _checked(family, predictions_b, references, languages)
    metric = get(family, name)
    if metric.joint:
        both = metric.statistics([*predictions_a, *predictions_b], [*references, *references], [*languages, *languages])
        return compare(metric, both[: len(references)], both[len(references) :], seed)
    a, b = (metric.statistics(predictions, references, languages) for predictions in (predictions_a, predictions_b))
    return compare(metric, a, b, seed)


def get(family: Family, name: str) -> Metric:
    """The metric of that name.

    Raises:
        UserError: there is none; the message suggests one.
    """
    named = {metric.name: metric for metric in _metrics(family)}
    if name not in named:
        kind = family if isinstance(family, str) else "the task's metrics"
        raise UserError(f"metric {name!r}: is not one of {kind}; {suggestion(name, named)}")
    return named[name]


def _metrics(family: Family) -> tuple[Metric, ...]:
    if not isinstance(family, str):
        return family
    if family not in FAMILIES:
        raise UserError(f"metric family {family!r}: is unknown; {suggestion(family, FAMILIES)}")
    return FAMILIES[family]


def _applying(family: Family, references: Sequence[Any], languages: Sequence[str]) -> list[Metric]:
    return [metric for metric in _metrics(family) if metric.applies(references, languages)]


def _checked(
    family: Family, predictions: Sequence[Any], references: Sequence[Any], languages: str | Sequence[str]
) -> list[str]:
    """The language of each segment, after all checks that the families share."""
    _metrics(family)
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
