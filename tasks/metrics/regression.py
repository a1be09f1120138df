"""Pearson's and Spearman's correlation (times 100), mean absolute error, root mean squared error."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Virtanen et al., SciPy 1.0: Fundamental Algorithms for Scientific Computing in Python, Nature Methods 17, 2020."""
NUMBER = datasets.Value("float64")


class Regression(evaluate.Metric):
    """`metrics.score("regression", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features({"predictions": NUMBER, "references": NUMBER})
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("regression", predictions, references, languages)
