"""ROUGE-1, ROUGE-2 and ROUGE-L F-measures; words keep their accents, Chinese goes by characters."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Chin-Yew Lin, ROUGE: A Package for Automatic Evaluation of Summaries, ACL workshop 2004."""


class Rouge(evaluate.Metric):
    """`metrics.score("summarization", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("summarization", predictions, references, languages)
