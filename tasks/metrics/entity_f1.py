"""Strict micro F1, precision and recall of entities in IOB2 tags, as seqeval has it, and SemEval-2013's partial F1."""

import datasets
import evaluate

from septet.tasks.harness import metrics

CITATION = """Tjong Kim Sang, De Meulder, Introduction to the CoNLL-2003 Shared Task, CoNLL 2003.
Segura-Bedmar, Martínez, Herrero-Zazo, SemEval-2013 Task 9: Extraction of Drug-Drug Interactions, SemEval 2013."""


class EntityF1(evaluate.Metric):
    """`metrics.score("ner", ...)` as an `evaluate` module."""

    def _info(self):
        features = datasets.Features(
            {
                "predictions": datasets.List(datasets.Value("string")),
                "references": datasets.List(datasets.Value("string")),
            }
        )
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=metrics.score.__doc__, features=features
        )

    def _compute(self, predictions, references, languages="en"):
        return metrics.score("ner", predictions, references, languages)
