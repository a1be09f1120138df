"""Classification: one label for a text, read in both directions and averaged over its tokens.

Defaults: four epochs of 32, the middle of what BERT's authors searched (Devlin et al. 2019). Macro-F1 leads, since
accuracy hides what happens to rare classes. A text longer than the context is cut at the end and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    balances = "one"
    defaults = Defaults(epochs=4)

    def example(self, row: Mapping[str, Any], columns: Mapping[str, str], reading: Reading) -> Example:
        label = row[columns["label"]]
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise ValueError(f"label {label!r}; a label is a string or a whole number")
        return Example(str(row["id"]), language(row, reading), {"text": text_of(row, columns["text"])}, str(label))

    def config_fields(self, train: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
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
        unseen = sorted(self.labels_of(examples) - known)
        if unseen:
            raise UserError(
                f"label {unseen[0]!r} is in the set to be scored, but train never had it (it had {', '.join(sorted(known))}); "
                "add it to train and fine-tune again, or leave those rows out"
            )

    def labels_of(self, examples: Sequence[Example]) -> set[str]:
        """The labels that these examples have."""
        return {example.reference for example in examples}

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

    def logits(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int
    ) -> tuple[np.ndarray, list[bool]]:
        """(rows, labels) float32 scores of the head, and whether each text was cut.

        Raises:
            UserError: a score is not finite.
        """
        import torch
        from tqdm import tqdm

        features = self.inputs(examples, tokenizer, model.config)
        cut = [feature.pop("truncated") for feature in features]
        scores = np.zeros((len(examples), model.config.num_labels), dtype=np.float32)
        batches = list(padded_batches([len(f["input_ids"]) for f in features], batch_size))
        for indices in tqdm(batches, desc=f"predict {self.name}", unit=" batches", mininterval=1, delay=1):
            batch = self.collate([features[i] for i in indices], tokenizer)
            with torch.no_grad():
                found = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            scores[indices] = found.float().cpu().numpy()
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
            raise UserError(
                f"row {examples[row].id!r}: the model's scores are not finite (NaN or infinity); it cannot be evaluated; "
                "train it again"
            )
        return scores, cut

    def answer(self, probabilities: Mapping[str, float]) -> Any:
        """The prediction that follows from the labels' probabilities."""
        return max(probabilities, key=probabilities.__getitem__)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(rows, labels) probabilities of (rows, labels) scores."""
        import torch

        return torch.from_numpy(scores).double().softmax(-1).numpy()

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        scores, cut = self.logits(model, tokenizer, examples, batch_size)
        labels = model.config.id2label
        rows = []
        for values, was_cut in zip(self.probabilities(scores).tolist(), cut, strict=True):
            named = {labels[n]: value for n, value in enumerate(values)}
            shown = {label: round(value, 5) for label, value in named.items()}
            rows.append({"prediction": self.answer(named), "truncated": was_cut, "probabilities": shown})
        return rows

    def combined(self, members: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The mean of the members' probabilities, row by row (an ensemble of seeds or checkpoints)."""
        rows = []
        for given in zip(*members, strict=True):
            labels = given[0]["probabilities"]
            mean = {label: sum(g["probabilities"][label] for g in given) / len(given) for label in labels}
            shown = {label: round(value, 5) for label, value in mean.items()}
            rows.append({**given[0], "prediction": self.answer(mean), "probabilities": shown})
        return rows

    # ---- classes of unequal size (harness.imbalance)
    def label_counts(self, examples: Sequence[Example], config: Any) -> list[int]:
        """Rows of each label, in the order of the head's outputs."""
        counts = Counter(example.reference for example in examples)
        return [counts[config.id2label[n]] for n in range(config.num_labels)]

    def label_matrix(self, examples: Sequence[Example], config: Any) -> np.ndarray:
        """What `imbalance.tuned_offsets` asks for: (rows,) classes."""
        return np.asarray([config.label2id[example.reference] for example in examples])

    def showcase(self, given: Mapping[str, Any]) -> Example:
        return Example("showcase", given.get("lang", "en"), {"text": given["text"]}, "")

    def shown(self, prediction: Mapping[str, Any], example: Example) -> str:
        best = prediction["prediction"]
        return f"{best} ({prediction['probabilities'][best]:.0%})"

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from septet.tasks.harness.metrics import calibration, class_table, confusion

        pair = [row["prediction"] for row in rows], [row["reference"] for row in rows]
        return {"classes": class_table(*pair), "confusion": confusion(*pair), "calibration": calibration(rows)}


TASK = Classification()
