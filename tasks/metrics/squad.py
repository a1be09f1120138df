"""SQuAD 2.0 exact match and F1 in English, French and Chinese. `references`: accepted answers, none if unanswerable."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Rajpurkar, Jia, Liang, Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018."""


class Squad(evaluate.Metric):
    """`metrics.score("qa", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages):
        return metrics.score("qa", predictions, references, languages)
