"""What pre-training asks of a batch: labels, masks and sentence pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from septet.data.packed import PackedDataset
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.modeling.objectives import (
    IGNORE_INDEX,
    PretrainingLosses,
    Vocabulary,
    causal_labels,
    make_inputs,
    masked,
    sentence_pairs,
)


@pytest.fixture(scope="module")
def batch(packed):
    return PackedDataset(packed, "train").batch(np.arange(24))


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_causal_labels_stop_at_borders_and_padding(batch) -> None:
    labels = causal_labels(batch.input_ids, batch.position_ids, batch.num_tokens)
    for row in range(len(labels)):
        start, expected = 0, np.full_like(labels[row], IGNORE_INDEX)
        for length in batch.document_lengths[row]:
            expected[start : start + length - 1] = batch.input_ids[row, start + 1 : start + length]
            start += length
        assert labels[row].tolist() == expected.tolist()


def test_masking_hides_the_stated_shares(vocabulary) -> None:
    ids = generator().integers(vocabulary.num_special, vocabulary.num_tokens, (200, 500))
    ids[:, 0] = vocabulary.bos_token_id
    hidden, labels = masked(ids, vocabulary, generator(1), 0.15)
    chosen = labels != IGNORE_INDEX
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    assert not chosen[:, 0].any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (hidden[~chosen] == ids[~chosen]).all()
    fate = hidden[chosen]
    assert (fate == vocabulary.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (fate == ids[chosen]).mean() == pytest.approx(0.1, abs=0.02)


def test_sentence_pairs_continue_or_come_from_elsewhere(batch, vocabulary, tokenizer) -> None:
    ids, positions, labels = sentence_pairs(batch, 4, vocabulary, generator())
    assert 0 < labels.sum() < len(labels)
    ended = 0
    for row, label in enumerate(labels):
        length = int((ids[row] != vocabulary.pad_token_id).sum())
        tokens = ids[row, :length].tolist()
        assert tokens[0] == vocabulary.bos_token_id
        border = tokens.index(vocabulary.sep_token_id)
        first, second = tokens[1:border], tokens[border + 1 :]
        langs = [i for i, lang in enumerate(batch.lang) if lang == batch.lang[row + 4]]
        texts = {i: [t for t in batch.input_ids[i].tolist() if t >= vocabulary.num_special] for i in langs}
        assert occurs(first, texts[row + 4])
        if label:
            assert any(occurs(second, text) for i, text in texts.items() if i != row + 4)
        else:
            assert occurs(first + second, texts[row + 4])
        ended += tokenizer.decode(first).rstrip()[-1:] in set(".!?。！？")
        assert positions[row, :length].tolist() == list(range(length))
    assert ended > len(labels) / 2  # cut at a sentence's end wherever the document has one


def occurs(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.mark.parametrize(
    ("objective", "kinds"),
    [("causal", {"causal"}), ("mlm", {"mlm"}), ("mlm_nsp", {"mlm", "nsp"}), ("joint", {"causal", "mlm", "nsp"})],
)
def test_inputs_are_a_function_of_the_seed(objective: str, kinds: set, batch, vocabulary) -> None:
    one, same, other = (make_inputs(objective, batch, vocabulary, generator(s), 0.15, 0.5) for s in (3, 3, 4))
    assert set(one.targets) == kinds
    for reading in ("causal", "bidirectional"):
        for name, tensor in getattr(one, reading).items():
            assert torch.equal(tensor, getattr(same, reading)[name])
    if "mlm" in kinds:
        assert not torch.equal(one.bidirectional["labels"], other.bidirectional["labels"])


def test_split_batches_have_the_same_losses(batch, vocabulary, config) -> None:
    """Summed losses of the halves are those of the whole: 1 x 2 accumulation equals 2 x 1."""
    torch.manual_seed(0)
    losses = PretrainingLosses(SeptetForPreTraining(config))
    inputs = make_inputs("joint", batch, vocabulary, generator(), 0.3, 0.5)
    whole = losses(inputs)
    halves = []
    for part in (slice(0, 6), slice(6, 12)):
        halves.append(type(inputs)({k: v[part] for k, v in inputs.causal.items()}, {k: v[part] for k, v in inputs.bidirectional.items()}))  # fmt: skip
    parts = [losses(half) for half in halves]
    for kind, value in whole.items():
        torch.testing.assert_close(sum(part[kind] for part in parts), value, rtol=1e-5, atol=1e-4)
