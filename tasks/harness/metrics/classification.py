"""Labels: one a text or any number, as scikit-learn scores them; and how far a model's probabilities can be believed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.tasks.harness.metrics.core import Metric, fixed, is_list, mean_of, ratio, require_texts

NUM_BINS = 15  # Guo et al. 2017


# ---- one label a text


def _label_statistics(predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 3 * num_labels): hits, predictions and references of each label that occurs.

    A predicted label that no reference has is one of them: it is a wrong prediction, and a class of its own in macro means.
    """
    require_texts(predictions, "predicted label")
    require_texts(references, "reference label")
    labels = {label: column for column, label in enumerate(sorted({*predictions, *references}))}
    one_hot = np.eye(len(labels))
    predicted = one_hot[[labels[label] for label in predictions]]
    expected = one_hot[[labels[label] for label in references]]
    return np.concatenate([predicted * expected, predicted, expected], axis=1)


def _by_label(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed label statistics -> hits, predictions, references, each (..., num_labels)."""
    return tuple(np.split(sums, 3, axis=-1))


def _macro(values: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Mean over the labels that occur: a resample without any trace of a label is scored as scikit-learn would."""
    _, predicted, expected = _by_label(sums)
    occurs = predicted + expected > 0
    return (values * occurs).sum(-1) / np.maximum(occurs.sum(-1), 1)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    hits, _, expected = _by_label(sums)
    return ratio(hits.sum(-1), expected.sum(-1))


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = (part.sum(-1) for part in _by_label(sums))
    return ratio(2 * hits, predicted + expected)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = _by_label(sums)
    return _macro(ratio(2 * hits, predicted + expected), sums)


def _macro_precision(sums: np.ndarray) -> np.ndarray:
    hits, predicted, _ = _by_label(sums)
    return _macro(ratio(hits, predicted), sums)


def _macro_recall(sums: np.ndarray) -> np.ndarray:
    hits, _, expected = _by_label(sums)
    return _macro(ratio(hits, expected), sums)


def _weighted_f1(sums: np.ndarray) -> np.ndarray:
    hits, predicted, expected = _by_label(sums)
    return ratio((ratio(2 * hits, predicted + expected) * expected).sum(-1), expected.sum(-1)) / 100


def _matthews(sums: np.ndarray) -> np.ndarray:
    """Matthews' correlation of several classes (Gorodkin 2004), -100 to 100; 0 where either side has a single label."""
    hits, predicted, expected = _by_label(sums)
    rows = expected.sum(-1)
    covariance = hits.sum(-1) * rows - (predicted * expected).sum(-1)
    spread = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (expected**2).sum(-1))
    return ratio(covariance, np.sqrt(spread))


def class_table(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """[{"label", "precision", "recall", "f1", "support"}] of each label that occurs, by name; 0 to 100, support in rows."""
    sums = _label_statistics(predictions, references, ()).sum(0)
    return table(sorted({*predictions, *references}), *_by_label(sums))


def confusion(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """{"labels": [...], "matrix": [[rows]]}, a row a reference label, a column a predicted one."""
    labels = sorted({*predictions, *references})
    counts = Counter(zip(references, predictions, strict=True))
    return {"labels": labels, "matrix": [[counts[row, column] for column in labels] for row in labels]}


def table(labels: Sequence[str], hits: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> list[dict[str, Any]]:
    """What `class_table` returns, of counts a label."""
    precision, recall = ratio(hits, predicted), ratio(hits, expected)
    columns = zip(labels, precision, recall, ratio(2 * hits, predicted + expected), expected, strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(support)}
        for label, p, r, f1, support in columns
    ]


# ---- any number of labels a text


def _label_set_statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 3 * num_labels + 2): as for one label; then whether the two sets are equal, and the constant 1."""
    for what, rows in (("predicted", predictions), ("reference", references)):
        for row, labels in enumerate(rows):
            if not is_list(labels, str):
                raise UserError(f"row {row}: the {what} labels are {labels!r}; they must be a list of strings")
    columns = {
        label: c for c, label in enumerate(sorted({x for rows in (predictions, references) for s in rows for x in s}))
    }
    predicted, expected = np.zeros((2, len(references), len(columns)))
    for matrix, rows in ((predicted, predictions), (expected, references)):
        for row, labels in enumerate(rows):
            matrix[row, [columns[label] for label in labels]] = 1
    equal = (predicted == expected).all(1)
    return np.column_stack([predicted * expected, predicted, expected, equal, np.ones(len(references))])


def _of_label_sets(aggregate: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: aggregate(sums[..., :-2])


# ---- probabilities


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def calibration(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the probabilities of a classifier can be believed.

    Args:
        rows: of predictions.jsonl: `reference`, `prediction`, and `probabilities` {label: 0 to 1} of every label.

    Returns:
        - "ece": expected calibration error, 0 to 100, over 15 bins of equal width (Guo et al. 2017, "On Calibration of
          Modern Neural Networks"): the mean, over rows, of their bin's gap between confidence and accuracy.
          Confidence is the probability of the prediction.
        - "brier": the mean of the squared error summed over labels (Brier 1950), 0 to 2, for two labels as for more.
        - "bins": {"low", "high", "rows", "confidence", "accuracy"} of each bin (low, high] that has rows, 0 to 100.

    Raises:
        UserError: no rows; a row without probabilities, or with one that is not a number from 0 to 1.
    """
    if not rows:
        raise UserError("0 rows: calibration needs at least one; give a test set that is not empty")
    confidence, right, brier = (np.empty(len(rows)) for _ in range(3))
    for number, row in enumerate(rows):
        given = row.get("probabilities")
        if not given or row["prediction"] not in given or not all(map(_is_probability, given.values())):
            raise UserError(
                f"row {number}: its probabilities are {given!r}; there must be one of 0 to 1 for every label; evaluate again"
            )
        confidence[number] = given[row["prediction"]]
        right[number] = row["prediction"] == row["reference"]
        labels = {*given, row["reference"]}  # a reference that the model does not know had probability 0
        brier[number] = math.fsum((given.get(label, 0.0) - (label == row["reference"])) ** 2 for label in labels)
    places = np.maximum(np.ceil(confidence * NUM_BINS), 1).astype(int) - 1
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            {
                "low": 100 * place / NUM_BINS,
                "high": 100 * (place + 1) / NUM_BINS,
                "rows": int(inside.sum()),
                "confidence": 100 * float(confidence[inside].mean()),
                "accuracy": 100 * float(right[inside].mean()),
            }
        )
    error = sum(found["rows"] * abs(found["confidence"] - found["accuracy"]) for found in bins) / len(rows)
    return {"ece": error, "brier": float(brier.mean()), "bins": bins}


# ---- the families


def _one_label(name: str, aggregate: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(name, _label_statistics, aggregate, fixed("labels:occurring|zero_division:0"), joint=True)


def _several_labels(name: str, aggregate: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(name, _label_set_statistics, aggregate, fixed("labels:occurring|zero_division:0"), joint=True)


METRICS = (
    _one_label("accuracy", _accuracy),
    _one_label("macro_f1", _macro_f1),
    _one_label("micro_f1", _micro_f1),
    _one_label("macro_precision", _macro_precision),
    _one_label("macro_recall", _macro_recall),
    _one_label("weighted_f1", _weighted_f1),
    _one_label("mcc", _matthews),
)
MULTILABEL = (
    _several_labels("macro_f1", _of_label_sets(_macro_f1)),
    _several_labels("micro_f1", _of_label_sets(_micro_f1)),
    _several_labels(
        "micro_precision", _of_label_sets(lambda sums: ratio(*(part.sum(-1) for part in _by_label(sums)[:2])))
    ),
    _several_labels(
        "micro_recall", _of_label_sets(lambda sums: ratio(*(part.sum(-1) for part in _by_label(sums)[::2])))
    ),
    _several_labels("exact_match", mean_of(-2)),
)
