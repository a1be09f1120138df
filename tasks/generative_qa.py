"""Question answering in words of one's own: a prefix-LM reads question and context and writes the answer.

For answers that are no span of the context (numbers to be put together, yes and no), and for sets without the places of
answers. A question without an answer has the empty one. The question comes first, so that a context that does not fit loses
its end and not the question; the report counts how often. Scores are those of `qa`.

Defaults: ten epochs and greedy decoding: answers are short, and beams favour shorter ones still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from septet.tasks.harness.baselines import BASELINES
from septet.tasks.harness.generation import GenerationTask
from septet.tasks.harness.task import Defaults, Example, Reading, language, text_of


class GenerativeQuestionAnswering(GenerationTask):
    name = "generative_qa"
    title = "Question answering, generative"
    hub_id = "rajpurkar/squad_v2"
    columns = {"question": "question", "context": "context", "answers": "answers"}
    primary_metric = "f1"
    metrics = "qa"
    metric_module = "squad"
    baselines = BASELINES["qa"]
    defaults = Defaults(epochs=10, max_new_tokens=48)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        question, context = text_of(row, columns["question"]), text_of(row, columns["context"])
        answers = row[columns["answers"]]
        answers = answers["text"] if isinstance(answers, Mapping) else answers  # SQuAD's columns, or a list of texts
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"answers {answers!r}; they are SQuAD's {{text, answer_start}} or a list of texts")
        given = {"question": question, "context": context}
        kept = [answer for answer in answers if answer.strip()]  # some sets write "no answer" as an empty one
        return Example(str(row["id"]), language(row, reading), given, kept, mended=len(kept) < len(answers))

    def source(self, example: Example) -> str:
        return f"{example.input['question']}\n{example.input['context']}"

    def target(self, example: Example) -> str:
        return example.reference[0] if example.reference else ""

    def showcase(self, given: Mapping[str, Any]) -> Example:
        return Example("showcase", given.get("lang", "en"), {k: given[k] for k in ("question", "context")}, [])


TASK = GenerativeQuestionAnswering()
