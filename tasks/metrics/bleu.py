"""Corpus BLEU, chrF and chrF++ by sacreBLEU; Chinese by its own tokenizer. `languages`: of the references."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Matt Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018."""


class Bleu(evaluate.Metric):
    """`metrics.score("translation", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages):
        return metrics.score("translation", predictions, references, languages)
