"""What pre-training asks of a batch: next tokens, masked tokens, next sentences, or all of them on one checkpoint.

Inputs are made from a packed batch by a generator that is seeded with (seed, step, micro-batch), so that a resumed run
and any number of processes see the same masks and the same sentence pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from septet.data.packed import Batch
from septet.modeling.modeling_septet import IGNORE_INDEX, chunked_linear_cross_entropy

# objective -> (the class that is trained, the classes whose weights are thereby trained)
OBJECTIVES: dict[str, tuple[str, list[str]]] = {
    "causal": ("SeptetForCausalLM", ["SeptetForCausalLM"]),
    "mlm": ("SeptetForMaskedLM", ["SeptetForMaskedLM"]),
    "mlm_nsp": (
        "SeptetForPreTraining",
        ["SeptetForPreTraining", "SeptetForMaskedLM", "SeptetForNextSentencePrediction"],
    ),
    "joint": (
        "SeptetForPreTraining",
        ["SeptetForCausalLM", "SeptetForPreTraining", "SeptetForMaskedLM", "SeptetForNextSentencePrediction"],
    ),
}
SENTENCE_ENDS = tuple(".!?。！？…")


@dataclass(frozen=True)
class Vocabulary:
    """What the objectives need of a tokenizer."""

    pad_token_id: int
    bos_token_id: int
    sep_token_id: int
    mask_token_id: int
    num_special: int
    """ids below this are special tokens and are neither masked nor drawn at random"""
    num_tokens: int
    sentence_end_ids: np.ndarray
    """ids of tokens whose text ends a sentence in English, French or Chinese"""

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        special = set(tokenizer.added_tokens_decoder)
        ends = [
            token_id
            for token_id in range(len(tokenizer))
            if token_id not in special and tokenizer.decode([token_id]).rstrip().endswith(SENTENCE_ENDS)
        ]
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "sep", "mask")}
        return cls(**ids, num_special=max(special) + 1, num_tokens=len(tokenizer), sentence_end_ids=np.asarray(ends))


@dataclass
class Inputs:
    """Tensors of one micro-batch by reading, and how many targets each loss has in it."""

    causal: dict[str, torch.Tensor] = field(default_factory=dict)
    bidirectional: dict[str, torch.Tensor] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)

    def to(self, device: torch.device) -> Inputs:
        move = {k: v.to(device, non_blocking=True) for k, v in self.causal.items()}
        return Inputs(move, {k: v.to(device, non_blocking=True) for k, v in self.bidirectional.items()}, self.targets)


def make_inputs(
    objective: str,
    batch: Batch,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    mask_probability: float,
    joint_causal_share: float,
) -> Inputs:
    """A micro-batch of packed sequences as the objective's inputs.

    Args:
        mask_probability: share of the text's tokens to be found again; of them 80 % become `<|mask|>`, 10 % a random
            token and 10 % stay (Devlin et al. 2019).
        joint_causal_share: share of the rows that "joint" reads causally; the others are masked and paired.
    """
    rows = len(batch.input_ids)
    num_causal = {"causal": rows, "joint": int(np.clip(round(rows * joint_causal_share), 1, rows - 1))}.get(
        objective, 0
    )
    inputs = Inputs()
    if num_causal:
        labels = causal_labels(batch.input_ids[:num_causal], batch.position_ids[:num_causal], batch.num_tokens)
        inputs.causal = _tensors(batch.input_ids[:num_causal], batch.position_ids[:num_causal], labels)
        inputs.targets["causal"] = int((labels != IGNORE_INDEX).sum())
    if num_causal < rows:
        input_ids, position_ids = batch.input_ids[num_causal:], batch.position_ids[num_causal:]
        next_sentence = None
        if objective in ("mlm_nsp", "joint"):
            input_ids, position_ids, next_sentence = sentence_pairs(batch, num_causal, vocabulary, generator)
        input_ids, labels = masked(input_ids, vocabulary, generator, mask_probability)
        inputs.bidirectional = _tensors(input_ids, position_ids, labels)
        inputs.targets["mlm"] = int((labels != IGNORE_INDEX).sum())
        if next_sentence is not None:
            inputs.bidirectional["next_sentence_label"] = torch.from_numpy(next_sentence)
            inputs.targets["nsp"] = len(next_sentence)
    return inputs


def _tensors(input_ids: np.ndarray, position_ids: np.ndarray, labels: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "labels": torch.from_numpy(labels),
    }


def causal_labels(input_ids: np.ndarray, position_ids: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """The next token at each position, (n, T); -100 where the next token starts another document or is padding."""
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[:, :-1] = np.where(position_ids[:, 1:] > 0, input_ids[:, 1:], IGNORE_INDEX)
    places = np.arange(input_ids.shape[1])
    labels[places[None] >= num_tokens[: len(labels), None] - 1] = IGNORE_INDEX
    return labels


def masked(
    input_ids: np.ndarray, vocabulary: Vocabulary, generator: np.random.Generator, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Input ids with some of the text's tokens hidden, and those tokens as labels (-100 elsewhere)."""
    chosen = (generator.random(input_ids.shape) < probability) & (input_ids >= vocabulary.num_special)
    labels = np.where(chosen, input_ids, IGNORE_INDEX)
    fate = generator.random(input_ids.shape)
    random_ids = generator.integers(vocabulary.num_special, vocabulary.num_tokens, input_ids.shape)
    hidden = np.where(chosen & (fate < 0.8), vocabulary.mask_token_id, input_ids)
    return np.where(chosen & (fate >= 0.9), random_ids, hidden), labels


def sentence_pairs(
    batch: Batch, first_row: int, vocabulary: Vocabulary, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`<bos> A <sep> B` from the longest document of each row, cut at the sentence end nearest to its middle.

    In half of the rows B is what follows A (label 0), in the other half the second part of the document of another row in
    the same language (label 1; Devlin et al. 2019).

    Returns:
        input_ids (n, T), position_ids (n, T) and labels (n,) for the rows from `first_row` on.
    """
    firsts, seconds = [], []
    for row, lengths in zip(batch.input_ids, batch.document_lengths, strict=True):
        longest = int(lengths.argmax())
        start = int(lengths[:longest].sum())
        document = row[start : start + lengths[longest]]
        document = document[document >= vocabulary.num_special]
        ends = np.flatnonzero(np.isin(document[:-1], vocabulary.sentence_end_ids)) + 1
        middle = len(document) // 2
        cut = int(ends[np.abs(ends - middle).argmin()]) if len(ends) else middle
        firsts.append(document[:cut])
        seconds.append(document[cut:])
    count, length = len(firsts) - first_row, batch.input_ids.shape[1]
    input_ids = np.full((count, length), vocabulary.pad_token_id, dtype=np.int64)
    position_ids = np.zeros((count, length), dtype=np.int64)
    # A stranger is of the same language, or its language alone would give it away; without one the pair is a true one.
    langs = np.asarray(batch.lang)
    others = [np.flatnonzero((langs == lang) & (np.arange(len(langs)) != row)) for row, lang in enumerate(langs)]
    wants_other, draw = generator.random(count) < 0.5, generator.random(count)
    labels = np.zeros(count, dtype=np.int64)
    for i in range(count):
        row = i + first_row
        labels[i] = wants_other[i] and len(others[row]) > 0
        second = seconds[others[row][int(draw[i] * len(others[row]))]] if labels[i] else seconds[row]
        first = firsts[row][-(length - 2 - min(len(second), length // 2)) :]
        pair = [[vocabulary.bos_token_id], first, [vocabulary.sep_token_id], second[: length - 2 - len(first)]]
        tokens = np.concatenate(pair)
        input_ids[i, : len(tokens)] = tokens
        position_ids[i] = np.concatenate([np.arange(len(tokens)), np.arange(length - len(tokens))])
    return input_ids, position_ids, labels


class PretrainingLosses(nn.Module):
    """A model with its losses, summed over the micro-batch's targets, as one module that DDP can wrap."""

    def __init__(self, model: nn.Module, z_loss_weight: float = 0.0):
        super().__init__()
        self.model = model
        self.z_loss_weight = z_loss_weight

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """The summed loss of each kind that the inputs have: "causal", "mlm", "nsp"."""
        sums = {}
        if inputs.causal:
            sums["causal"] = self._token_loss(inputs.causal, "causal")[0]
        if inputs.bidirectional:
            sums["mlm"], states = self._token_loss(inputs.bidirectional, "bidirectional")
            if "next_sentence_label" in inputs.bidirectional:
                logits = self.model.nsp_head(states[:, 0]).float()  # (n, 2)
                label = inputs.bidirectional["next_sentence_label"]
                sums["nsp"] = nn.functional.cross_entropy(logits, label, reduction="sum")
        return sums

    def _token_loss(self, tensors: dict[str, torch.Tensor], mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.model.model(
            tensors["input_ids"], position_ids=tensors["position_ids"], attention_mode=mode, use_cache=False
        ).last_hidden_state
        weight = self.model.lm_head.weight
        return chunked_linear_cross_entropy(states, weight, tensors["labels"], 0.0, self.z_loss_weight), states
