"""Multi-label classification: any number of labels for a text, each by its own yes or no.

Defaults as for classification. A label is given where its probability is at least one half; `--tune-thresholds` moves
that on the validation set. Macro-F1 leads: a label that few texts have counts as much as any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.tasks.classification import Classification
from septet.tasks.harness.task import Example, Reading, language, text_of


class MultiLabel(Classification):
    name = "multilabel"
    title = "Multi-label classification"
    hub_id = "google-research-datasets/go_emotions"
    columns = {"text": "text", "labels": "labels"}
    metric_module = "multilabel"
    balances = "several"

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        labels = row[columns["labels"]]
        if not isinstance(labels, list) or not all(
            isinstance(x, str | int) and not isinstance(x, bool) for x in labels
        ):
            raise ValueError(f"labels {labels!r}; they are a list of strings or whole numbers, empty where none fits")
        if len(set(map(str, labels))) < len(labels):
            raise ValueError(f"labels {labels!r}; each may stand there once")
        reference = sorted(map(str, labels))
        return Example(str(row["id"]), language(row, reading), {"text": text_of(row, columns["text"])}, reference)

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
        labels = sorted({label for example in train for label in example.reference})
        if not labels:
            raise UserError("train holds no label at all; there is nothing to learn; give rows with labels")
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "multi_label_classification",
        }

    def labels_of(self, examples: Sequence[Example]) -> set[str]:
        return {label for example in examples for label in example.reference}

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        features = self.inputs(examples, tokenizer, config)
        for feature, row in zip(features, self.label_matrix(examples, config), strict=True):
            feature["labels"] = row
        return features

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-scores.astype(np.float64)))

    def answer(self, probabilities: Mapping[str, float]) -> list[str]:
        return sorted(label for label, value in probabilities.items() if value >= 0.5)

    def label_counts(self, examples: Sequence[Example], config: Any) -> list[int]:
        counts = Counter(label for example in examples for label in example.reference)
        return [counts[config.id2label[n]] for n in range(config.num_labels)]

    def label_matrix(self, examples: Sequence[Example], config: Any) -> np.ndarray:
        """(rows, labels) float32 of 0 and 1."""
        matrix = np.zeros((len(examples), config.num_labels), dtype=np.float32)
        for row, example in enumerate(examples):
            matrix[row, [config.label2id[label] for label in example.reference]] = 1
        return matrix

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        found = prediction["prediction"]
        return ", ".join(f"{label} ({prediction['probabilities'][label]:.0%})" for label in found) or "no label"

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {}


TASK = MultiLabel()
