"""Classification: one label for a text, read in both directions and averaged over its tokens.

Defaults: four epochs of 32, the middle of what BERT's authors searched (Devlin et al. 2019). Macro-F1 leads, since
accuracy hides what happens to rare classes. A text longer than the context is cut at the end and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from septet.data.errors import UserError
from septet.tasks.harness.task import Defaults, Example, Reading, Task, language, padded_batches, text_of


class Classification(Task):
    name = "classification"
    title = "Classification"
    hub_id = "fancyzhx/ag_news"
    columns = {"text": "text", "label": "label"}
    head = "SeptetForSequenceClassification"
    attention_mode = "bidirectional"
    pipeline_tag = "text-classification"
    primary_metric = "macro_f1"
    metric_module = "classification"
    defaults = Defaults(epochs=4)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        label = row[columns["label"]]
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise ValueError(f"label {label!r}; a label is a string or a whole number")
        return Example(str(row["id"]), language(row, reading), {"text": text_of(row, columns["text"])}, str(label))

    def config_fields(self, train: Sequence[Example]) -> dict[str, Any]:
        labels = sorted({example.reference for example in train})
        if len(labels) < 2:
            raise UserError(
                f"train holds the one label {labels[0]!r}; classification needs at least two; give more rows"
            )
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def check(self, examples: Sequence[Example], config: Any) -> None:
        known = set(config.id2label.values())
        unseen = sorted({example.reference for example in examples} - known)
        if unseen:
            raise UserError(
                f"label {unseen[0]!r} is in the set to be scored, but train never had it (it had {', '.join(sorted(known))}); "
                "add it to train and fine-tune again, or leave those rows out"
            )

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        features = self.inputs(examples, tokenizer, config)
        for feature, example in zip(features, examples, strict=True):
            feature["labels"] = config.label2id[example.reference]
        return features

    def inputs(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        """Token ids without labels, and whether a text was cut."""
        length = config.max_position_embeddings
        encoded = tokenizer([example.input["text"] for example in examples])["input_ids"]
        return [{"input_ids": ids[:length], "truncated": len(ids) > length} for ids in encoded]

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        import torch
        from tqdm import tqdm

        features = self.inputs(examples, tokenizer, model.config)
        cut = [feature.pop("truncated") for feature in features]
        rows: list[dict[str, Any]] = [{} for _ in examples]
        batches = list(padded_batches([len(f["input_ids"]) for f in features], batch_size))
        labels = model.config.id2label
        for indices in tqdm(batches, desc=f"predict {self.name}", unit=" batches", mininterval=1):
            batch = self.collate([features[i] for i in indices], tokenizer)
            with torch.no_grad():
                logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits.float()
            for i, probabilities in zip(indices, logits.softmax(-1).tolist(), strict=True):
                best = max(range(len(probabilities)), key=probabilities.__getitem__)
                shown = {labels[n]: round(p, 5) for n, p in enumerate(probabilities)}
                rows[i] = {"prediction": labels[best], "truncated": cut[i], "probabilities": shown}
        return rows

    def showcase(self, given: Mapping[str, Any]) -> Example:
        return Example("showcase", given.get("lang", "en"), {"text": given["text"]}, "")

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        best = prediction["prediction"]
        return f"{best} ({prediction['probabilities'][best]:.0%})"

    def tables(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        from septet.tasks.harness.metrics import class_table, confusion

        return {"classes": class_table(predictions, references), "confusion": confusion(predictions, references)}


TASK = Classification()
