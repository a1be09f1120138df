"""Classes of unequal size: weighted losses, rows drawn more or less often or rewritten, thresholds from held-out rows.

Everything ends up in the weights: a tuned threshold becomes a part of the classifier's bias, so that the published model
answers alike in any pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from septet.data.errors import UserError

EFFECTIVE_BETA = 0.999  # Cui et al. 2019: of 0.9 to 0.9999 the middle, for classes of tens to thousands of rows
REWRITTEN_SHARE = 0.15  # of a text's tokens, BERT's share: what the masked-LM head was trained to fill in
REWRITTEN_CHOICES = 10  # tokens that a place is drawn from
OFFSETS = np.arange(-40, 41) / 10  # of a class's logit, when thresholds are tuned: factors of 1/55 to 55 in odds


def class_weights(counts: Sequence[int], how: str) -> np.ndarray:
    """(labels,) weights whose mean over the rows is 1.

    Args:
        counts: rows of each class, all at least 1.
        how: "balanced", rows / (classes x rows of the class), as scikit-learn's; "sqrt", its square root; "effective",
            by the effective number of rows, (1 - b) / (1 - b^rows) with b = 0.999 (Cui et al. 2019, "Class-Balanced Loss
            Based on Effective Number of Samples").
    """
    rows = np.asarray(counts, dtype=float)
    balanced = rows.sum() / (len(rows) * rows)
    kinds = {
        "balanced": balanced,
        "sqrt": np.sqrt(balanced),
        "effective": (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**rows),
    }
    weights = kinds[how]
    return weights * rows.sum() / (weights * rows).sum()


def make_loss(
    kind: str, counts: Sequence[int], weights: np.ndarray | None, focal_gamma: float, multi_label: bool, num_rows: int
) -> Callable[[Any, Any], Any]:
    """The loss of a classifier as a function of (logits (B, labels), labels); a mean over the batch.

    Args:
        kind: "cross_entropy"; "focal", in which a row that is right with probability p counts (1 - p)^gamma (Lin et al.
            2017, "Focal Loss for Dense Object Detection"); "logit_adjusted", which adds the logarithm of each class's
            share to its logit while training, so that the bare logits weigh all classes alike (Menon et al. 2021,
            "Long-Tail Learning via Logit Adjustment").
        counts: rows of each class.
        weights: of each class, or None. For several labels a row they multiply the rows that have the label.
        multi_label: labels are (B, labels) of 0 and 1, else (B,) classes.
        num_rows: of train, of which the counts are shares.
    """
    import torch
    from torch.nn import functional

    weight = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    log_share = torch.log(torch.as_tensor(np.asarray(counts) / num_rows, dtype=torch.float32))

    def wrong(losses: Any) -> Any:
        return (1 - torch.exp(-losses)).clamp(min=1e-7)  # at 0 a power below 1 has no gradient

    def of_classes(logits: Any, labels: Any) -> Any:
        if kind == "logit_adjusted":
            logits = logits + log_share.to(logits.device)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        if kind == "focal":
            losses = losses * wrong(losses) ** focal_gamma
        if weight is None:
            return losses.mean()
        of_row = weight.to(logits.device)[labels]
        return (losses * of_row).sum() / of_row.sum()

    def of_labels(logits: Any, labels: Any) -> Any:
        losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if kind == "focal":
            losses = losses * wrong(losses) ** focal_gamma
        if weight is not None:
            losses = losses * torch.where(labels > 0, weight.to(logits.device), 1.0)
        return losses.mean()

    return of_labels if multi_label else of_classes


def drawn(labels: Sequence[str], how: str, ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on, and of those to train on once more, so that no class is too rare or too frequent.

    Args:
        labels: of each row.
        how: "over" (or "synthetic"): rows of a rare class come again until the most frequent class has at most `ratio`
            times its rows; "under": a frequent class keeps at most `ratio` times the rows of the rarest.
    """
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    names, counts = np.unique(labels, return_counts=True)
    first, again = [], []
    for name, count in zip(names, counts, strict=True):
        rows = np.flatnonzero(labels == name)
        if how == "under":
            keep = min(count, max(1, round(ratio * counts.min())))
            first += sorted(generator.choice(rows, keep, replace=False).tolist())
            continue
        first += rows.tolist()
        missing = max(0, round(counts.max() / ratio) - count)
        whole, rest = divmod(missing, count)  # each row once before any row twice
        again += np.tile(rows, whole).tolist() + sorted(generator.choice(rows, rest, replace=False).tolist())
    return sorted(first), again


def rewritten(texts: Sequence[str], base: Path, seed: int, batch_size: int = 32) -> list[str]:
    """The texts with some words drawn anew by the checkpoint's own masked-LM head (Kobayashi 2018, "Contextual
    Augmentation"), whole words where there are words; a text that is longer than the context keeps its end as it is.

    It works in every language that the checkpoint has read, where libraries of synonyms serve English at best.

    Raises:
        UserError: the checkpoint's masked-LM head was never trained.
    """
    import torch

    from septet.data.pack import load_tokenizer
    from septet.modeling.modeling_septet import IGNORE_INDEX, SeptetForMaskedLM
    from septet.modeling.objectives import Vocabulary, masked

    model = SeptetForMaskedLM.from_pretrained(base, dtype=torch.float32, attention_mode="bidirectional").eval()
    if "SeptetForMaskedLM" not in (model.config.trained_heads or []):
        raise UserError(
            f"{base}: its masked-LM head was never trained, and --sampling synthetic rewrites rows with it; pre-train with "
            "--objective joint or mlm, or take --sampling over"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(base)
    vocabulary, generator = Vocabulary.of(tokenizer), np.random.default_rng(seed)
    special = torch.from_numpy(vocabulary.is_special).to(model.device)
    first_class = torch.from_numpy(vocabulary.first_class).to(model.device)
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    room = model.config.max_position_embeddings - 2
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    out = list(texts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [[tokenizer.bos_token_id, *encoded[i][:room], tokenizer.eos_token_id] for i in indices]
        length = max(map(len, rows))
        ids = np.asarray([[*row, *[tokenizer.pad_token_id] * (length - len(row))] for row in rows])
        mask = np.asarray([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        places = np.broadcast_to(np.arange(length), ids.shape)
        hidden, labels = masked(ids, places, vocabulary, generator, REWRITTEN_SHARE)
        with torch.no_grad():
            inputs = {"input_ids": torch.from_numpy(hidden), "attention_mask": torch.from_numpy(mask)}
            logits = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float()
        # A token comes for one that begins alike, so that words stay apart and Chinese stays Chinese.
        alike = first_class == first_class[torch.from_numpy(ids).to(model.device)][..., None]
        best = logits.masked_fill(special | ~alike, -torch.inf).topk(REWRITTEN_CHOICES, dim=-1)
        shares = best.values.softmax(-1).cumsum(-1).cpu().numpy()
        choice = (shares < generator.random(ids.shape)[..., None]).sum(-1).clip(max=REWRITTEN_CHOICES - 1)
        new = np.take_along_axis(best.indices.cpu().numpy(), choice[..., None], axis=-1)[..., 0]
        ids = np.where(labels != IGNORE_INDEX, new, ids)
        for i, row, tokens in zip(indices, rows, ids.tolist(), strict=True):
            kept = [*tokens[1 : len(row) - 1], *encoded[i][room:]]
            out[i] = tokenizer.decode(kept).strip() or texts[i]
    return out


def tuned_offsets(logits: np.ndarray, labels: np.ndarray, sweeps: int = 3) -> np.ndarray:
    """(labels,) offsets to the logits with which macro-F1 is highest on held-out rows.

    For one label a row the classes are gone through several times, each taking the best of a grid while the others
    stay; for several labels each is independent of the others and its best offset is found once. Of equally good offsets
    the one nearest 0 is taken, so that nothing moves without a reason.

    Args:
        logits: (rows, labels).
        labels: (rows,) classes, or (rows, labels) of 0 and 1.
    """
    grid = OFFSETS[np.argsort(np.abs(OFFSETS), kind="stable")]
    offsets = np.zeros(logits.shape[1])
    if labels.ndim == 2:
        for label in range(logits.shape[1]):
            predicted = logits[:, label] + grid[:, None] > 0  # (grid, rows)
            truth = labels[:, label] > 0
            hits = (predicted & truth).sum(1)
            f1 = 2 * hits / np.maximum(predicted.sum(1) + truth.sum(), 1)
            offsets[label] = grid[f1.argmax()]
        return offsets
    for _ in range(sweeps):
        before = offsets.copy()
        for label in range(logits.shape[1]):
            others = np.delete(logits + offsets, label, axis=1)
            second, best_other = others.max(1), np.delete(np.arange(logits.shape[1]), label)[others.argmax(1)]
            takes = logits[:, label] + grid[:, None] > second  # (grid, rows)
            scores = [_macro_f1(np.where(row, label, best_other), labels, logits.shape[1]) for row in takes]
            offsets[label] = grid[int(np.argmax(scores))]
        if (offsets == before).all():
            break
    return offsets


def _macro_f1(predicted: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    hits = np.bincount(labels[predicted == labels], minlength=num_labels)
    both = np.bincount(predicted, minlength=num_labels) + np.bincount(labels, minlength=num_labels)
    return float((2 * hits / np.maximum(both, 1))[both > 0].mean())
