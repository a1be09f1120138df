"""What pre-training asks of a batch: labels, masks and sentence pairs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from septet.data.packed import Batch, PackedDataset
from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetForNextSentencePrediction, SeptetForPreTraining
from septet.modeling.objectives import (
    IGNORE_INDEX,
    PretrainingLosses,
    Vocabulary,
    causal_labels,
    make_inputs,
    masked,
    sentence_ends,
    sentence_pairs,
    unit_starts,
)


@pytest.fixture(scope="module")
def batch(packed):
    return PackedDataset(packed, "train").batch(np.arange(24))


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def text_of(tokens, vocabulary: Vocabulary) -> str:
    return b"".join(vocabulary.pieces[token] for token in tokens).decode(errors="replace")


def test_causal_labels_stop_at_borders_and_padding(batch) -> None:
    labels = causal_labels(batch.input_ids, batch.position_ids, batch.num_tokens)
    for row in range(len(labels)):
        start, expected = 0, np.full_like(labels[row], IGNORE_INDEX)
        for length in batch.document_lengths[row]:
            expected[start : start + length - 1] = batch.input_ids[row, start + 1 : start + length]
            start += length
        assert labels[row].tolist() == expected.tolist()


# ---- masking


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("The cat sleeps on it.", ["The", " cat", " sleeps", " on", " it", "."]),
        ("Elle naît à l'été, dit-il", ["Elle", " naît", " à", " l", "'", "été", ",", " dit", "-", "il"]),
        (
            "in 1987, (see 3.14) don't",
            ["in", " ", "1987", ",", " (", "see", " ", "3", ".", "14", ")", " don", "'", "t"],
        ),
        ("他在Paris住。", ["他", "在", "Paris", "住", "。"]),
    ],
)
def test_units_are_words_numbers_and_chinese_characters(text, units, tokenizer, vocabulary) -> None:
    """The test tokenizer spells most of this in single bytes, so each unit has several tokens."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])[None]
    starts = unit_starts(ids, np.arange(ids.shape[1])[None] + 1, vocabulary)[0]
    parts = np.split(ids[0], np.flatnonzero(starts)[1:])
    found = [text_of(part, vocabulary) for part in parts]
    # Signs and white space may share a token; what matters is that no word is divided or joined to another.
    assert [u for u in found if any(c.isalnum() for c in u)] == [u for u in units if any(c.isalnum() for c in u)]
    assert "".join(found) == text
    assert any(len(part) > 1 for part in parts)


def test_a_document_starts_a_unit(tokenizer, vocabulary) -> None:
    ids = np.asarray(tokenizer("aaaa", add_special_tokens=False)["input_ids"] * 2)[None]
    half = ids.shape[1] // 2
    positions = np.concatenate([np.arange(half), np.arange(half)])[None]
    assert np.flatnonzero(unit_starts(ids, positions, vocabulary)).tolist() == [0, half]


def test_masking_hides_the_stated_shares_of_whole_units(batch, vocabulary) -> None:
    ids, positions = (np.tile(a, (60, 1)) for a in (batch.input_ids, batch.position_ids))
    hidden, labels = masked(ids, positions, vocabulary, generator(1), 0.15)
    chosen, text = labels != IGNORE_INDEX, ~vocabulary.is_special[ids]
    assert not chosen[~text].any()
    assert chosen[text].mean() == pytest.approx(0.15, abs=0.005)
    assert (labels[chosen] == ids[chosen]).all()
    assert (hidden[~chosen] == ids[~chosen]).all()
    unit = unit_starts(ids, positions, vocabulary).ravel().cumsum()[text.ravel()]
    share = np.bincount(unit, chosen[text]) / np.maximum(1, np.bincount(unit))
    assert set(share) == {0.0, 1.0}  # all of a unit or nothing
    assert unit[-1] < text.sum() * 0.8  # and units do have several tokens
    fate = hidden[chosen]
    assert (fate == vocabulary.mask_token_id).mean() == pytest.approx(0.8, abs=0.01)
    assert (fate == ids[chosen]).mean() == pytest.approx(0.1, abs=0.01)
    assert not vocabulary.is_special[fate[fate != vocabulary.mask_token_id]].any()


# ---- pairs of sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["Mr. Pip met Dr. J. S. Mill at 3.14 o'clock.", "He paid $2.50!", '"Why?"', '"No," he said. "why not?"'],
        ["1. See fig. 3, p. 12.", "It costs 5.", "(Really.)", "‘Good.’", "A title\n\n", "Vol. 2 is\nthe end..."],
        ["M. Dupont et Mme. Roux sont là.", "« Ah ! » dit-il.", "« Oui. »", "— Maman ?", "Non, c'est p. 3."],
        ["他说：「好。」", "她走了！", "真的吗？", "圆周率是3.14。", "完了……"],
    ],
)
def test_sentences_end_where_readers_say(sentences, tokenizer, vocabulary) -> None:
    joint = "" if any(c >= "\u4e00" for c in sentences[0]) else " "
    text = joint.join(sentences)
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    places = sentence_ends(ids, vocabulary)
    expected = [part.strip() for sentence in sentences for part in sentence.split("\n\n") if part.strip()]
    assert [text_of(part, vocabulary).strip() for part in np.split(ids, places)] == expected
    # Also in a document that was cut within a character.
    inside = np.flatnonzero(vocabulary.num_characters[ids] == 0)
    for cut in inside[:2]:
        assert set(sentence_ends(ids[cut:], vocabulary)) == {place - cut for place in places if place > cut}


def test_a_sentence_that_ends_within_a_token_is_not_cut_there(vocabulary) -> None:
    words = replace(vocabulary, pieces=[b"It is", b" late. We", b" go."], num_characters=np.array([5, 9, 4]))
    assert sentence_ends(np.array([0, 1, 2]), words).tolist() == []


def pairs_of(ids, labels, vocabulary) -> list[tuple[int, int, list[int], list[int]]]:
    """(row, label, A, B) of all pairs; B is empty where a part had no sentence end."""
    pairs = []
    for row in range(len(ids)):
        tokens = [t for t in ids[row].tolist() if t != vocabulary.pad_token_id]
        begins = [i for i, t in enumerate(tokens) if t == vocabulary.bos_token_id]
        assert begins[0] == 0
        for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
            inner = tokens[begin + 1 : end]
            cut = inner.index(vocabulary.sep_token_id) if vocabulary.sep_token_id in inner else len(inner)
            pairs.append((row, int(labels[row, begin]), inner[:cut], inner[cut + 1 :]))
    return pairs


def occurs(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def documents_of(batch: Batch, vocabulary: Vocabulary) -> list[tuple[int, str, list[int]]]:
    """(row, language, text) of each document."""
    found = []
    for row, lengths in enumerate(batch.document_lengths):
        for piece in np.split(batch.input_ids[row, : lengths.sum()], np.cumsum(lengths)[:-1]):
            found.append((row, batch.lang[row], [t for t in piece.tolist() if not vocabulary.is_special[t]]))
    return found


def test_sentence_pairs_continue_or_come_from_elsewhere(batch, vocabulary) -> None:
    rows = np.arange(4, 24)
    ids, positions, labels = sentence_pairs(batch, rows, vocabulary, generator())
    documents = documents_of(batch, vocabulary)
    counts = {0: 0, 1: 0, IGNORE_INDEX: 0}
    for i, label, first, second in pairs_of(ids, labels, vocabulary):
        counts[label] += 1
        home = [text for row, _, text in documents if row == rows[i]]
        assert any(occurs(first, text) for text in home)
        if label == IGNORE_INDEX:
            continue
        assert text_of(first, vocabulary).rstrip()[-1] in ".!?。！？"
        continues = any(occurs(first + second, text) for text in home)
        assert continues == (label == 0)
        if label:
            texts = [text for _, lang, text in documents if lang == batch.lang[rows[i]]]
            assert any(occurs(second, text) for text in texts)
    assert counts[0] and counts[1] and counts[0] + counts[1] > len(rows) / 2
    bos = ids == vocabulary.bos_token_id
    assert (positions[bos] == 0).all()
    assert (labels[~bos] == IGNORE_INDEX).all()
    for row, position in zip(ids, positions, strict=True):  # one more at each step, from 0 at each pair and the padding
        steps = np.diff(position) != 1
        padding = np.flatnonzero(row == vocabulary.pad_token_id)[:1].tolist()
        assert (np.flatnonzero(steps) + 1).tolist() == sorted(
            [*np.flatnonzero(row == vocabulary.bos_token_id)[1:], *padding]
        )


class Coins:
    """A generator whose coins all fall on one side."""

    def __init__(self, side: int):
        self.side, self.generator = side, generator(5)

    def __getattr__(self, name):
        return getattr(self.generator, name)

    def integers(self, low, high, size=None):
        drawn = self.generator.integers(low, high, size)
        return drawn if size is None else np.full(size, self.side)


def test_nothing_but_the_text_tells_a_pair_from_strangers(batch, vocabulary) -> None:
    """With every coin turned the layout is the same to the token, and each language has the same A and B.

    (A full row's end cuts its last B, so eight tokens are compared.)"""
    (true, true_at, zeros), (false, false_at, ones) = (
        sentence_pairs(batch, np.arange(24), vocabulary, Coins(side)) for side in (0, 1)
    )
    assert (true_at == false_at).all()
    assert ((zeros == 0) == (ones == 1)).all() and (zeros == 0).any()
    for special in (vocabulary.bos_token_id, vocabulary.sep_token_id, vocabulary.pad_token_id):
        assert ((true == special) == (false == special)).all()
    for part in (2, 3):
        for lang in ("en", "fr", "zh"):
            one, other = (
                sorted(pair[part][:8] for pair in pairs_of(ids, labels, vocabulary) if batch.lang[pair[0]] == lang and pair[1] >= 0)
                for ids, labels in ((true, zeros), (false, ones))
            )  # fmt: skip
            assert one == other and one


def test_pieces_of_one_document_are_no_strangers(batch, vocabulary) -> None:
    """A sequence-length schedule cuts rows; two pieces of a document are then in different rows."""
    alone = batch.document_lengths[0][:1]
    row = np.tile(batch.input_ids[:1, : alone[0]], 8)[:, :256]
    one = Batch(row, np.arange(256)[None], np.array([256]), [np.array([256])], ["en"], np.array([7]))
    one.input_ids[0, 1:] = np.where(vocabulary.is_special[row[0, 1:]], row[0, 5], row[0, 1:])  # a single document
    cut = one.cut(64)
    assert cut.input_ids.shape == (4, 64)
    ids, _, labels = sentence_pairs(cut, np.arange(4), vocabulary, generator())
    assert (labels == IGNORE_INDEX).all() and (ids == vocabulary.sep_token_id).any()
    strangers = Batch(cut.input_ids, cut.position_ids, cut.num_tokens, cut.document_lengths, cut.lang, np.arange(4))
    assert (sentence_pairs(strangers, np.arange(4), vocabulary, generator())[2] >= 0).any()


def test_a_short_piece_does_not_end_its_row(batch, vocabulary) -> None:
    """A row of 5 tokens of one document and 251 of the next, as concatenation leaves it: both are read."""
    text = np.array([t for t in batch.input_ids[batch.lang.index("en")].tolist() if not vocabulary.is_special[t]])
    row = np.concatenate([text[:5], [vocabulary.bos_token_id], np.resize(text, 250)])
    positions = np.concatenate([np.arange(5), np.arange(251)])
    rows = Batch(row[None], positions[None], np.array([256]), [np.array([5, 251])], ["en"], np.arange(1))
    ids, _, _ = sentence_pairs(rows, np.arange(1), vocabulary, generator())
    assert (~vocabulary.is_special[ids]).sum() > 200


def test_long_rows_hold_pairs_of_several_lengths(batch, vocabulary) -> None:
    text = [t for t in batch.input_ids[batch.lang.index("en")].tolist() if not vocabulary.is_special[t]]
    row = np.asarray([vocabulary.bos_token_id, *(text * 12)[:511]])
    rows = Batch(np.tile(row, (4, 1)), np.tile(np.arange(512), (4, 1)), np.full(4, 512), [np.array([512])] * 4,
                 ["en"] * 4, np.arange(4))  # fmt: skip
    counts = {int((sentence_pairs(rows, np.arange(4), vocabulary, generator(s))[0] == 1).sum()) // 4 for s in range(40)}
    bos = vocabulary.bos_token_id
    assert bos == 1 and counts == {1, 2, 4, 8}  # 512, 256, 128 and 64 tokens


# ---- inputs and losses


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


def test_joint_draws_which_rows_are_read_causally(batch, vocabulary) -> None:
    chosen = np.zeros(24)
    for seed in range(200):
        inputs = make_inputs("joint", batch, vocabulary, generator(seed), 0.15, 0.25)
        assert len(inputs.causal["input_ids"]) == 6 and len(inputs.bidirectional["input_ids"]) == 18
        row = [np.flatnonzero((batch.input_ids == r.numpy()).all(1))[0] for r in inputs.causal["input_ids"]]
        assert len(set(row)) == 6
        chosen[row] += 1
    assert chosen.min() > 25 and chosen.max() < 80  # 50 each, standard deviation 6


def test_a_single_document_has_no_next_sentence_targets(batch, vocabulary, config) -> None:
    one = Batch(batch.input_ids[:1], batch.position_ids[:1], batch.num_tokens[:1], batch.document_lengths[:1],
                batch.lang[:1], batch.rows[:1])  # fmt: skip
    if len(one.document_lengths[0]) > 1:
        pytest.skip("the first row holds several documents")
    inputs = make_inputs("mlm_nsp", one, vocabulary, generator(), 0.3, 0.5)
    assert set(inputs.targets) == {"mlm", "nsp"} and inputs.targets["nsp"] == 0
    losses = PretrainingLosses(SeptetForPreTraining(config))
    parts = losses(inputs)
    assert parts["nsp"].item() == 0
    sum(parts.values()).backward()
    assert losses.model.nsp_head.weight.grad.abs().sum() == 0  # every parameter takes part, as DDP asks


def test_packed_pairs_are_read_as_if_each_stood_alone(batch, vocabulary, config) -> None:
    torch.manual_seed(0)
    model = SeptetForPreTraining(config).eval()
    with torch.no_grad():
        model.nsp_head.weight.normal_()
    inputs = make_inputs("mlm_nsp", batch, vocabulary, generator(2), 0.3, 0.5)
    found = PretrainingLosses(model)(inputs)
    alone = SeptetForNextSentencePrediction(config).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("lm_head")})
    tensors, expected, expected_mlm = inputs.bidirectional, 0.0, 0.0
    for row in range(len(tensors["input_ids"])):
        begins = [*torch.nonzero(tensors["position_ids"][row] == 0).flatten().tolist(), 64]
        for begin, end in pairwise(begins):
            ids = tensors["input_ids"][row, begin:end][None]
            logits = model(ids).prediction_logits[0]
            expected_mlm += torch.nn.functional.cross_entropy(
                logits, tensors["labels"][row, begin:end], reduction="sum", ignore_index=IGNORE_INDEX
            )
            label = tensors["next_sentence_label"][row, begin]
            if label >= 0:
                expected += torch.nn.functional.cross_entropy(alone(ids).logits, label[None], reduction="sum")
    torch.testing.assert_close(found["nsp"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["mlm"], expected_mlm, rtol=1e-4, atol=1e-3)


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


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_a_head_that_must_be_called_has_the_same_losses(z_loss_weight, batch, vocabulary, config) -> None:
    """Tensor parallelism and FSDP2 gather weights in the hooks of modules, so the weight alone will not do."""
    torch.manual_seed(0)
    losses = PretrainingLosses(SeptetForPreTraining(config), z_loss_weight)
    inputs = make_inputs("joint", batch, vocabulary, generator(), 0.3, 0.5)
    plain, calls = losses(inputs), []
    losses.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    hooked = losses(inputs)
    assert len(calls) == 2
    for kind, value in plain.items():
        torch.testing.assert_close(hooked[kind], value, rtol=1e-5, atol=1e-3)


def test_logits_of_a_text_come_through_the_same_module(batch, config) -> None:
    torch.manual_seed(0)
    model = SeptetForCausalLM(config).eval()
    ids = torch.from_numpy(batch.input_ids[:2, :20])
    with torch.no_grad():
        torch.testing.assert_close(PretrainingLosses(model)(input_ids=ids), model(ids).logits)
        both = PretrainingLosses(model)(input_ids=ids, attention_mode="bidirectional")
    assert both.shape == (2, 20, config.vocab_size) and not torch.allclose(both, model(ids).logits)
