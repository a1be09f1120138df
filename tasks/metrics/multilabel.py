"""Macro and micro F1, micro precision and recall, and exact match of sets of labels, as scikit-learn defines them."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."""
LABELS = datasets.List(datasets.Value("string"))


class MultiLabel(evaluate.Metric):
    """`metrics.score("multilabel", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features({"predictions": LABELS, "references": LABELS})
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("multilabel", predictions, references, languages)
