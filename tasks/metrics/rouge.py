"""ROUGE-1, -2, -L and -Lsum F-measures; words keep their accents, Chinese goes by characters.

References: one text a row, or a list of several, of which the best counts.
"""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Chin-Yew Lin, ROUGE: A Package for Automatic Evaluation of Summaries, ACL workshop 2004."""
TEXT = datasets.Value("string")


class Rouge(evaluate.Metric):
    """`metrics.score("summarization", ...)` as an `evaluate` module."""

    def _info(self):
        features = [
            datasets.Features({"predictions": TEXT, "references": TEXT}),
            datasets.Features({"predictions": TEXT, "references": datasets.List(TEXT)}),
        ]
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("summarization", predictions, references, languages)
