"""SQuAD 2.0 exact match and F1 in English, French and Chinese. `references`: accepted answers, none if unanswerable.

Also F1 by kind of question, where there are both kinds, and CMRC 2018's scores, where all rows are Chinese.
"""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Rajpurkar, Jia, Liang, Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018.
Cui et al., A Span-Extraction Dataset for Chinese Machine Reading Comprehension, EMNLP-IJCNLP 2019."""


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
