"""Regression: a number for a text, such as a rating or a similarity, read in both directions and averaged over its tokens.

Defaults as for classification. The head learns numbers of mean 0 and variance 1, by squared error; the finished model's
last layer gives them back on their own scale. Pearson's correlation leads, as on STS-B (Cer et al. 2017).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.tasks.classification import Classification
from septet.tasks.harness.task import Example, Reading, language, text_of


class Regression(Classification):
    name = "regression"
    title = "Regression"
    hub_id = "stanfordnlp/sst"
    columns = {"text": "sentence", "score": "label"}
    primary_metric = "pearson"
    metric_module = "regression"
    balances = ""

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        value = row[columns["score"]]
        if isinstance(value, str):  # a file of comma-separated values has nothing else
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"score {value!r}; a score is a finite number")
        return Example(str(row["id"]), language(row, reading), {"text": text_of(row, columns["text"])}, float(value))

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
        values = np.asarray([example.reference for example in train])
        if values.std() == 0:
            raise UserError(f"train holds the one score {values[0]:g}; regression needs at least two; give more rows")
        scale = {"mean": float(values.mean()), "std": float(values.std())}
        labels = {"id2label": {0: "score"}, "label2id": {"score": 0}}
        return {**labels, "problem_type": "regression", "task_specific_params": {"regression": scale}}

    def labels_of(self, examples: Sequence[Example]) -> set[str]:
        return set()

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        scale = config.task_specific_params["regression"]
        features = self.inputs(examples, tokenizer, config)
        for feature, example in zip(features, examples, strict=True):
            feature["labels"] = (example.reference - scale["mean"]) / scale["std"]
        return features

    def finish(self, model: Any, tokenizer: Any, settings: Any) -> None:
        """Puts the scale into the last layer, so that any pipeline gives numbers of the set's own kind."""
        scale = model.config.task_specific_params.pop("regression")
        model.classifier.weight.data *= scale["std"]
        model.classifier.bias.data *= scale["std"]
        model.classifier.bias.data += scale["mean"]

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        scores, cut = self.logits(model, tokenizer, examples, batch_size)
        # While it is fine-tuned the model still answers in standard deviations.
        scale = (model.config.task_specific_params or {}).get("regression", {"mean": 0.0, "std": 1.0})
        values = scale["mean"] + scale["std"] * scores[:, 0].astype(float)
        return [{"prediction": float(v), "truncated": c} for v, c in zip(values, cut, strict=True)]

    def combined(self, members: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The mean of the members' numbers, row by row."""
        rows = []
        for given in zip(*members, strict=True):
            rows.append({**given[0], "prediction": sum(g["prediction"] for g in given) / len(given)})
        return rows

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        return f"{prediction['prediction']:.3g}"

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {}


TASK = Regression()
