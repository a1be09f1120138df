"""Named entities: one IOB2 tag a token, read in both directions.

The tokens are joined to running text (with spaces, in Chinese without) and encoded as such, so that transformers'
token-classification pipeline sees at use what the model saw in training. Every piece of a word carries a tag, B- on the
first piece of an entity and I- on all others, so that the pipeline's spans are whole. Long inputs are read in windows
that overlap by half; each token takes its tag from the window in which it stands farthest from the edge. Tags of the older
scheme IOB1, where an entity may start with I-, are read as IOB2, and the report counts those rows.

Defaults: six epochs of 32; entity sets are small, and the head starts from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from septet.data.errors import UserError
from septet.tasks.harness.task import Defaults, Example, Reading, Task, language, padded_batches, require_finite


class NamedEntities(Task):
    name = "ner"
    title = "Named entities"
    hub_id = "eriktks/conll2003"
    columns = {"tokens": "tokens", "ner_tags": "ner_tags"}
    head = "SeptetForTokenClassification"
    attention_mode = "bidirectional"
    pipeline_tag = "token-classification"
    primary_metric = "entity_f1"
    metric_module = "entity_f1"
    defaults = Defaults(epochs=6)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        tokens, tags = list(row[columns["tokens"]]), list(row[columns["ner_tags"]])
        if len(tokens) != len(tags):
            raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags; there must be one tag a token")
        for token in tokens:
            if not isinstance(token, str):
                raise ValueError(f"token {token!r}; tokens are strings")
        if not tokens:
            raise ValueError("no tokens; there must be at least one")
        for tag in tags:
            if tag != "O" and not (isinstance(tag, str) and tag[:2] in ("B-", "I-") and len(tag) > 2):
                raise ValueError(f"tag {tag!r}; tags are O, B-TYPE or I-TYPE (IOB2)")
        mended = as_iob2(tags)
        return Example(str(row["id"]), language(row, reading), {"tokens": tokens}, mended, mended=mended != tags)

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
        types = sorted({tag[2:] for example in train for tag in example.reference if tag != "O"})
        if not types:
            raise UserError("train holds no entity at all; there is nothing to learn; give rows with B- and I- tags")
        labels = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }

    def check(self, examples: Sequence[Example], config: Any) -> None:
        known = {label[2:] for label in config.id2label.values() if label != "O"}
        unseen = sorted({tag[2:] for example in examples for tag in example.reference if tag != "O"} - known)
        if unseen:
            raise UserError(
                f"entity type {unseen[0]!r} is in the set to be scored, but train never had it (it had "
                f"{', '.join(sorted(known))}); add it to train and fine-tune again, or leave those rows out"
            )

    def windows(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        """Windows of token ids: `example` index, `input_ids`, and for each piece the word it lies in (`words`, -1: none)
        and whether it is that word's first (`first`)."""
        found = []
        length = config.max_position_embeddings
        texts, spans = zip(*(joined(example.input["tokens"], example.lang) for example in examples), strict=True)
        encoded = tokenizer(
            list(texts),
            truncation=True,
            max_length=length,
            stride=min(length // 2, length - 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for window, ids in enumerate(encoded["input_ids"]):
            index = encoded["overflow_to_sample_mapping"][window]
            word_at = {c: w for w, (start, end) in enumerate(spans[index]) for c in range(start, end)}
            words, first, last = [], [], -1
            text = texts[index]
            for start, end in encoded["offset_mapping"][window]:
                begin = (
                    start + len(text[start:end]) - len(text[start:end].lstrip())
                )  # a piece may hold the space before
                word = word_at.get(begin, -1) if begin < end else -1
                words.append(word)
                first.append(word >= 0 and begin == spans[index][word][0] and word != last)
                last = word if word >= 0 else last
            found.append({"example": index, "input_ids": ids, "words": words, "first": first, "spans": spans[index]})
        return found

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        features = []
        for window in self.windows(examples, tokenizer, config):
            tags = examples[window["example"]].reference
            labels = []
            for word, first in zip(window["words"], window["first"], strict=True):
                tag = "O" if word < 0 else tags[word] if first or tags[word] == "O" else f"I-{tags[word][2:]}"
                labels.append(-100 if word < 0 else config.label2id[tag])
            features.append({"input_ids": window["input_ids"], "labels": labels, "truncated": False})
        return features

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        import torch
        from tqdm import tqdm

        windows = self.windows(examples, tokenizer, model.config)
        tags: list[list[str]] = [["O"] * len(example.input["tokens"]) for example in examples]
        margins = [[-1] * len(example.input["tokens"]) for example in examples]
        batches = list(padded_batches([len(w["input_ids"]) for w in windows], batch_size))
        for indices in tqdm(batches, desc=f"predict {self.name}", unit=" batches", mininterval=1, delay=1):
            batch = self.collate([{"input_ids": windows[i]["input_ids"]} for i in indices], tokenizer)
            with torch.no_grad():
                logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            require_finite(logits)
            best = logits.argmax(-1).tolist()
            for i, labels in zip(indices, best, strict=True):
                window = windows[i]
                seen = set()
                for place, word in enumerate(window["words"]):
                    if word < 0:
                        continue
                    # One piece may cover several words (merged Chinese characters): the later ones go on with its entity.
                    covered = _words_of_piece(window, place)
                    label = model.config.id2label[labels[place]]
                    margin = min(place, len(window["words"]) - place)
                    for offset, covered_word in enumerate(covered):
                        if covered_word in seen:
                            continue
                        seen.add(covered_word)  # its first piece speaks for it
                        if margin <= margins[window["example"]][covered_word]:
                            continue
                        margins[window["example"]][covered_word] = margin
                        inside = offset > 0 and label != "O"
                        tags[window["example"]][covered_word] = f"I-{label[2:]}" if inside else label
        return [{"prediction": as_iob2(row), "truncated": False} for row in tags]

    def showcase(self, given: Mapping[str, Any]) -> Example:
        lang = given.get("lang", "zh")
        tokens = list(given["text"]) if lang == "zh" else given["text"].split()
        return Example("showcase", lang, {"tokens": tokens}, ["O"] * len(tokens))

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        from septet.tasks.harness.metrics import entities

        space = "" if example.lang == "zh" else " "
        found = sorted(entities(prediction["prediction"]), key=lambda entity: entity[1])
        return "; ".join(f"{space.join(example.input['tokens'][s:e])} = {kind}" for kind, s, e in found) or "no entity"

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from septet.tasks.harness.metrics import entity_table

        return {"classes": entity_table([row["prediction"] for row in rows], [row["reference"] for row in rows])}


def _words_of_piece(window: Mapping[str, Any], place: int) -> list[int]:
    """The words that begin with or lie inside a piece: from its own to the one before the next piece's."""
    words = window["words"]
    following = next((word for word in words[place + 1 :] if word >= 0), None)
    return list(range(words[place], max(words[place] + 1, following if following is not None else words[place] + 1)))


def joined(tokens: Sequence[str], lang: str) -> tuple[str, list[tuple[int, int]]]:
    """Running text of tokens and each token's (start, end) in it; spaces between them, but in Chinese none."""
    text, spans = "", []
    for token in tokens:
        if text and lang != "zh":
            text += " "
        spans.append((len(text), len(text) + len(token)))
        text += token
    return text, spans


def as_iob2(tags: Sequence[str]) -> list[str]:
    """Tags in which every entity starts with B-: an I- that goes on with nothing becomes a B-."""
    mended, before = [], "O"
    for tag in tags:
        starts = tag.startswith("I-") and before[2:] != tag[2:]
        mended.append(f"B-{tag[2:]}" if starts else tag)
        before = tag
    return mended


TASK = NamedEntities()
