"""Corpus BLEU, chrF and chrF++ by sacreBLEU; Chinese by its own tokenizer. `languages`: of the references.

References: one text a row, or a list of several. `septet.tasks.harness.metrics.compute` gives the signatures as well.
"""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Matt Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018.
Maja Popović, chrF++: words helping character n-grams, WMT 2017."""
TEXT = datasets.Value("string")


class Bleu(evaluate.Metric):
    """`metrics.score("translation", ...)` as an `evaluate` module."""

    def _info(self):
        features = [
            datasets.Features({"predictions": TEXT, "references": TEXT}),
            datasets.Features({"predictions": TEXT, "references": datasets.List(TEXT)}),
        ]
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages):
        return metrics.score("translation", predictions, references, languages)
