"""Summarization: a prefix-LM reads the document in both directions and writes the summary.

Defaults: label smoothing 0.1 and four beams as for translation; six epochs. A document that does not fit into the
context beside its summary is cut at the end, where news and descriptions say least; the report counts how often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from septet.tasks.harness.generation import GenerationTask
from septet.tasks.harness.task import Defaults, Example, Reading, language, text_of


class Summarization(GenerationTask):
    name = "summarization"
    title = "Summarization"
    hub_id = "EdinburghNLP/xsum"
    columns = {"document": "document", "summary": "summary"}
    primary_metric = "rougeL"
    metric_module = "rouge"
    source_role = "document"
    defaults = Defaults(epochs=6, label_smoothing=0.1, num_beams=4, max_new_tokens=64)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        document, summary = text_of(row, columns["document"]), text_of(row, columns["summary"])
        return Example(str(row["id"]), language(row, reading), {"document": document}, summary)


TASK = Summarization()
