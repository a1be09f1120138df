"""Question answering: the answer is a span of the context, found by the scores of its first and last token.

`<bos> question <sep> context`, read in both directions. A context that does not fit is read in windows that overlap by
half; the best span over all windows wins. Position 0 stands for "no answer" in a window; it is an answer of the whole
only if train had unanswerable questions (SQuAD 2.0).

The model is told which tokens question and context share (`exact_match_embedding`): without it a small one does not learn
to look for them, and finds less than a sentence with the same words does (docs/results.md). Tokenizers without a separator,
some imported ones, go without.

Defaults: four epochs of 32; answers of at most 30 tokens, as in BERT's recipe (Devlin et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from septet.data.errors import UserError
from septet.tasks.harness.task import (
    Defaults,
    Example,
    Reading,
    Task,
    language,
    padded_batches,
    require_finite,
    text_of,
)

MAX_ANSWER_TOKENS = 30
CANDIDATES = 20  # first and last positions that are paired with each other


class QuestionAnswering(Task):
    name = "qa"
    title = "Question answering"
    hub_id = "rajpurkar/squad"
    columns = {"question": "question", "context": "context", "answers": "answers"}
    head = "SeptetForQuestionAnswering"
    attention_mode = "bidirectional"
    pipeline_tag = "question-answering"
    primary_metric = "f1"
    metric_module = "squad"
    defaults = Defaults(epochs=4)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        question, context = text_of(row, columns["question"]), text_of(row, columns["context"])
        answers = row[columns["answers"]]
        columns_of_squad = isinstance(answers, Mapping) and all(
            isinstance(answers.get(key), Sequence) and not isinstance(answers[key], str)
            for key in ("text", "answer_start")
        )
        if not columns_of_squad or not all(isinstance(text, str) for text in answers["text"]):
            raise ValueError(
                f"answers {answers!r:.80}; they are SQuAD's {{text, answer_start}}, a list each, empty for none"
            )
        if len(answers["text"]) != len(answers["answer_start"]):
            raise ValueError(
                f"{len(answers['text'])} answers and {len(answers['answer_start'])} starts; each answer needs its start"
            )
        # Some sets write "no answer" as an empty one.
        given = [(t, s) for t, s in zip(answers["text"], answers["answer_start"], strict=True) if t.strip()]
        for text, start in given:
            there = context[start : start + len(text)]
            if there != text:
                raise ValueError(
                    f"the answer {text[:40]!r} should start at character {start} of the context, but there stands "
                    f"{there[:40]!r}; answer_start counts characters from 0"
                )
        spans = [(start, start + len(text)) for text, start in given]
        return Example(
            str(row["id"]),
            language(row, reading),
            {"question": question, "context": context},
            [text for text, _ in given],
            {"spans": spans},
            mended=len(given) < len(answers["text"]),
        )

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
        return {
            "task_specific_params": {"qa": {"unanswerable": any(not example.reference for example in train)}},
            "exact_match_embedding": tokenizer.sep_token_id is not None,
        }

    def windows(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        """Windows: `example` index, `input_ids`, `offsets` of each piece in the context (None outside of it), and whether the
        question was cut (`truncated`)."""
        length = config.max_position_embeddings
        questions = [example.input["question"] for example in examples]
        # A question may take half of the window at most; what is longer is cut.
        halves = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        limit = length // 2 - 2
        cut = [len(offsets) > limit for offsets in halves]
        questions = [q[: o[limit - 1][1]] if c else q for q, o, c in zip(questions, halves, cut, strict=True)]
        longest = min(limit, max(map(len, halves)))
        encoded = tokenizer(
            questions,
            [example.input["context"] for example in examples],
            truncation="only_second",
            max_length=length,
            stride=(length - longest - 2) // 2,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found = []
        for window, ids in enumerate(encoded["input_ids"]):
            sequence = encoded.sequence_ids(window)
            offsets = [o if s == 1 else None for o, s in zip(encoded["offset_mapping"][window], sequence, strict=True)]
            index = encoded["overflow_to_sample_mapping"][window]
            found.append({"example": index, "input_ids": ids, "offsets": offsets, "truncated": cut[index]})
        return found

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        if config.attention_mode == "causal" and not all(example.reference for example in examples):
            raise UserError(
                "--attention-mode causal: that a question has no answer is read off the first token, which then sees nothing "
                "else; leave the option out, or leave out the questions without an answer"
            )
        features = []
        for window in self.windows(examples, tokenizer, config):
            first, last = 0, 0
            spans = examples[window["example"]].extra["spans"]
            if spans:
                first, last = _token_span(window["offsets"], *spans[0])
            feature = {"input_ids": window["input_ids"], "start_positions": first, "end_positions": last}
            features.append({**feature, "truncated": window["truncated"]})
        return features

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        import torch
        from tqdm import tqdm

        windows = self.windows(examples, tokenizer, model.config)
        options = (getattr(model.config, "task_specific_params", None) or {}).get("qa", {})
        best: list[tuple[float, str]] = [(-1e9, "")] * len(examples)
        null = [1e9] * len(examples)
        batches = list(padded_batches([len(w["input_ids"]) for w in windows], batch_size))
        for indices in tqdm(batches, desc=f"predict {self.name}", unit=" batches", mininterval=1, delay=1):
            batch = self.collate([{"input_ids": windows[i]["input_ids"]} for i in indices], tokenizer)
            with torch.no_grad():
                output = model(**{k: v.to(model.device) for k, v in batch.items()})
            require_finite(output.start_logits)
            require_finite(output.end_logits)
            for row, i in enumerate(indices):
                start, end = output.start_logits[row].float(), output.end_logits[row].float()
                index = windows[i]["example"]
                null[index] = min(null[index], float(start[0] + end[0]))
                scored = best_span(start.tolist(), end.tolist(), windows[i]["offsets"])
                if scored is not None and scored[0] > best[index][0]:
                    best[index] = (scored[0], examples[index].input["context"][scored[1] : scored[2]].strip())
        rows = []
        cut = {window["example"] for window in windows if window["truncated"]}
        within_reach = {w["example"] for w in windows if _holds_an_answer(w["offsets"], examples[w["example"]])}
        for index, ((score, text), no_answer) in enumerate(zip(best, null, strict=True)):
            silent = options.get("unanswerable") and no_answer > score
            rows.append({"prediction": "" if silent else text, "truncated": index in cut})
            rows[-1]["score"] = round(score - no_answer, 4)
            rows[-1]["out_of_reach"] = bool(examples[index].reference) and index not in within_reach
        return rows

    def showcase(self, given: Mapping[str, Any]) -> Example:
        given_texts = {key: given[key] for key in ("question", "context")}
        return Example("showcase", given.get("lang", "zh"), given_texts, [], {"spans": []})


def _token_span(offsets: Sequence[tuple[int, int] | None], start: int, end: int) -> tuple[int, int]:
    """First and last piece of the characters [start, end); (0, 0) if the window does not hold them whole."""
    inside = [i for i, o in enumerate(offsets) if o is not None and o[0] < end and o[1] > start]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def _holds_an_answer(offsets: Sequence[tuple[int, int] | None], example: Example) -> bool:
    """Whether one of the accepted answers is a span of a window's pieces, few enough of them."""
    context = example.input["context"]
    for start, end in example.extra.get("spans", ()):
        first, last = _token_span(offsets, start, end)
        if offsets[first] is not None and last - first < MAX_ANSWER_TOKENS:
            given = context[offsets[first][0] : offsets[last][1]]
            if given.strip() == context[start:end].strip():
                return True
    return False


def best_span(
    start: Sequence[float], end: Sequence[float], offsets: Sequence[tuple[int, int] | None]
) -> tuple[float, int, int] | None:
    """(score, first character, end character) of the best span in the context; None if the window has no context."""
    places = [i for i, offset in enumerate(offsets) if offset is not None]
    firsts = sorted(places, key=lambda i: -start[i])[:CANDIDATES]
    lasts = sorted(places, key=lambda i: -end[i])[:CANDIDATES]
    spans = [(start[i] + end[j], i, j) for i in firsts for j in lasts if i <= j < i + MAX_ANSWER_TOKENS]
    if not spans:
        return None
    score, first, last = max(spans)
    return score, offsets[first][0], offsets[last][1]


TASK = QuestionAnswering()
