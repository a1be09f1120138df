"""Accuracy, macro, micro and weighted F1, macro precision and recall, and MCC of labels, as scikit-learn defines them."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."""


class Classification(evaluate.Metric):
    """`metrics.score("classification", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("classification", predictions, references, languages)
