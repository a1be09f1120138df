"""What pre-training asks of a batch: next tokens, masked tokens, next sentences, or all of them on one checkpoint.

Inputs are made from a packed batch by a generator that is seeded with (seed, step, micro-batch), so that a resumed run
and any number of processes see the same masks and the same sentence pairs.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from septet.data.packed import Batch
from septet.modeling.modeling_septet import IGNORE_INDEX, language_model_loss, project

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

# objective -> its losses
LOSSES = {"causal": ("causal",), "mlm": ("mlm",), "mlm_nsp": ("mlm", "nsp"), "joint": ("causal", "mlm", "nsp")}

# Where a sentence ends, in English, French and Chinese; `end` stands where it does, and the next one begins after the
# space that follows. Measured on novels, manuals and chronicles: of 50 cuts a language, read by eye, none was wrong.
# sentencex 1.0.32, the best library found and as fast, makes some 900 cuts of its own beside 6,000 to 7,600 common ones
# in English and French, three quarters of them wrong ("M. | Dupont", "Why? | "). pysbd takes 0.1 s for 4,096 tokens,
# nupunkt finds no ends in Chinese, ICU cuts where a line wraps. An end that is missed here does no harm: others are near.
_ABBREVIATIONS = (  # and single letters: "J. S. Mill", "M. Dupont", "p. 3"
    r"[^\W\d_]|M[rsM]|Mrs|Mme|Mmes|Mlle|Mlles|Mgr|Messrs|Dr|Prof|Sr|Jr|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Esq|Vol|Fig|Ch|St|Ste"
    r"|pp|vs|cf|etc|viz|art|al|chap|éd|ibid|op|cit|vol|fig|ex|env|av|apr"
)
_NO_END = "".join(rf"(?<!\b{abbreviation}\.)" for abbreviation in _ABBREVIATIONS.split("|"))
_NO_END += r"(?<!(?m:^)\d\.)(?<!(?m:^)\d\d\.)"  # "1. First" where a line begins
_SENTENCE_END = re.compile(
    r"(?P<end>[.!?…。！？\n](?:"  # one set first: the engine looks for it at the speed of a scan
    r"(?<=\n)(?=[^\S\n]*\n)"  # a paragraph
    r"|(?<=[。！？])[。！？…]*[」』”’）》〉\"']*"  # full-width stops end a sentence wherever they stand
    rf"|(?<=[.!?…]){_NO_END}[.!?…]*[\"'”’´)\]]*(?:\s?»)*"
    r"(?=\s+[\"“‘'`«(\[—–-]*\s*[^\W\da-zß-öø-ÿœ_]|\s+\d|\s*[\u3400-\u9fff])"
    r"))\s*"
)
# What a unit of masking is made of: the classes of a token's first and last character say whether two neighbours belong
# together. Letters do, as in the tokenizer's own splitting (`DEEPSEEK_V3_SPLITS`), and so do the digits of one number.
_OTHER, _LETTER, _DIGIT, _SPACE, _INSIDE = range(5)
_JOINS = np.zeros((5, 5), dtype=bool)  # [last character of the token before, first character of this one]
_JOINS[:, _INSIDE] = True  # the bytes of a character go with its first byte
_JOINS[[_LETTER, _SPACE], _LETTER] = True  # a space is part of the word that follows
_JOINS[_DIGIT, _DIGIT] = True

_LEAST_PAIR = 64  # tokens of the shortest pairs of sentences; ours
_LEAST_PART = 8  # tokens that each side of a pair has at least; ours


@dataclass(frozen=True)
class Vocabulary:
    """What the objectives need of a tokenizer: byte-level BPE, as `septet tokenizer` makes it."""

    pad_token_id: int
    bos_token_id: int
    sep_token_id: int
    mask_token_id: int
    ordinary_ids: np.ndarray
    """ids of the tokens that are not special, which alone are masked and drawn at random"""
    is_special: np.ndarray
    """(V,) bool"""
    pieces: list[bytes]
    """V texts as UTF-8, which a token may begin or end within a character; special tokens have none"""
    num_characters: np.ndarray
    """(V,) characters that begin in the token"""
    first_class: np.ndarray
    """(V,) class of the token's first character"""
    last_class: np.ndarray
    """(V,) class of its last one"""

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """The tables of a tokenizer, computed once: some 0.2 s for 65,536 tokens."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
        pieces = [b""] * len(tokenizer)
        for token, token_id in tokenizer.get_vocab().items():
            if token_id not in special:
                pieces[token_id] = bytes(byte_of[character] for character in token)
        is_special = np.asarray([token_id in special for token_id in range(len(pieces))])
        return cls(
            **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "sep", "mask")},
            ordinary_ids=np.flatnonzero(~is_special),
            is_special=is_special,
            pieces=pieces,
            num_characters=np.asarray([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces]),
            first_class=np.asarray([_first_class(piece) for piece in pieces]),
            last_class=np.asarray([_last_class(piece) for piece in pieces]),
        )


def _class_of(character: str) -> int:
    code, category = ord(character), unicodedata.category(character)
    if 0x3005 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF:
        return _OTHER  # Chinese characters and kana, each token of them a unit of its own
    if category[0] in "LM":
        return _LETTER
    if category[0] == "N":
        return _DIGIT
    return _SPACE if character.isspace() and character not in "\r\n" else _OTHER


def _first_class(piece: bytes) -> int:
    if not piece:
        return _OTHER
    if piece[0] & 0xC0 == 0x80:
        return _INSIDE
    size = 1 if piece[0] < 0x80 else 2 if piece[0] < 0xE0 else 3 if piece[0] < 0xF0 else 4
    return _class_of(piece[:size].decode()) if len(piece) >= size else _class_of_part(piece)


def _last_class(piece: bytes) -> int:
    begin = next((i for i in reversed(range(len(piece))) if piece[i] & 0xC0 != 0x80), None)
    if begin is None:
        return _INSIDE if piece else _OTHER
    try:
        return _class_of(piece[begin:].decode())
    except UnicodeDecodeError:
        return _class_of_part(piece[begin:])


def _class_of_part(part: bytes) -> int:
    """Of a character whose first bytes alone are here: two-byte ones are letters with accents, Greek, Cyrillic and so
    on; of the longer ones most are Chinese."""
    return _LETTER if 0xC3 <= part[0] <= 0xDF else _OTHER


@dataclass
class Inputs:
    """Tensors of one micro-batch by reading, and how many targets each loss has in it."""

    causal: dict[str, torch.Tensor] = field(default_factory=dict)
    bidirectional: dict[str, torch.Tensor] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)

    def to(self, device: torch.device) -> Inputs:
        move = {k: v.to(device, non_blocking=True) for k, v in self.causal.items()}
        return Inputs(move, {k: v.to(device, non_blocking=True) for k, v in self.bidirectional.items()}, self.targets)

    def readings(self) -> list[Inputs]:
        """Each reading by itself, so that one's activations are gone before the other's are there."""
        parts = [Inputs(causal=self.causal), Inputs(bidirectional=self.bidirectional)]
        return [part for part in parts if part.causal or part.bidirectional]


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
        mask_probability: share of the text's tokens to be found again (see `masked`).
        joint_causal_share: share of the rows that "joint" reads causally, rounded to whole rows, at least one of each
            kind. Which rows is drawn: a place of the micro-batch holds the same source in every cycle of the data.

    Returns:
        The inputs of each reading: input_ids, position_ids and labels, (n, T) each; for pairs of sentences also
        next_sentence_label (n, T), at each pair's first token 0 or 1, elsewhere -100. An objective's `targets` have the
        same keys in every micro-batch.
    """
    rows = len(batch.input_ids)
    num_causal = {"causal": rows, "joint": int(np.clip(round(rows * joint_causal_share), 1, rows - 1))}.get(
        objective, 0
    )
    order = generator.permutation(rows) if objective == "joint" else np.arange(rows)
    causal, others = np.sort(order[:num_causal]), np.sort(order[num_causal:])
    inputs = Inputs()
    if len(causal):
        input_ids, position_ids = batch.input_ids[causal], batch.position_ids[causal]
        labels = causal_labels(input_ids, position_ids, batch.num_tokens[causal])
        inputs.causal = _tensors(input_ids=input_ids, position_ids=position_ids, labels=labels)
        inputs.targets["causal"] = int((labels != IGNORE_INDEX).sum())
    if len(others):
        pairs = {}
        if objective in ("mlm_nsp", "joint"):
            input_ids, position_ids, pairs["next_sentence_label"] = sentence_pairs(batch, others, vocabulary, generator)
            inputs.targets["nsp"] = int((pairs["next_sentence_label"] != IGNORE_INDEX).sum())
        else:
            input_ids, position_ids = batch.input_ids[others], batch.position_ids[others]
        input_ids, labels = masked(input_ids, position_ids, vocabulary, generator, mask_probability)
        inputs.bidirectional = _tensors(input_ids=input_ids, position_ids=position_ids, labels=labels, **pairs)
        inputs.targets["mlm"] = int((labels != IGNORE_INDEX).sum())
    return inputs


def _tensors(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def causal_labels(input_ids: np.ndarray, position_ids: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """The next token at each position, (n, T); -100 where the next token starts another document or is padding."""
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[:, :-1] = np.where(position_ids[:, 1:] > 0, input_ids[:, 1:], IGNORE_INDEX)
    places = np.arange(input_ids.shape[1])
    labels[places[None] >= num_tokens[: len(labels), None] - 1] = IGNORE_INDEX
    return labels


def unit_starts(input_ids: np.ndarray, position_ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Where a unit of masking begins, (n, T) bool: a word with all its pieces, a number, a Chinese character with all its
    bytes; a token of several Chinese characters, a sign, and white space by itself are units of their own."""
    last = vocabulary.last_class[input_ids]
    begun = np.maximum.accumulate(np.where(last == _INSIDE, 0, np.arange(last.shape[1])), axis=1)
    last = np.take_along_axis(last, begun, axis=1)  # bytes inside a character are of the class of its first byte
    starts = np.ones(input_ids.shape, dtype=bool)
    starts[:, 1:] = ~_JOINS[last[:, :-1], vocabulary.first_class[input_ids[:, 1:]]]
    return starts | (position_ids == 0)


def masked(
    input_ids: np.ndarray,
    position_ids: np.ndarray,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Input ids with some of the text's units hidden, and their tokens as labels (-100 elsewhere), (n, T) both.

    Each unit is chosen with `probability`, so that this is also the share of tokens, on average. Of the chosen tokens 80 %
    become `<|mask|>`, 10 % a random token and 10 % stay (Devlin et al. 2019); the fate is drawn for each token, not for
    the unit, as Google's whole-word release of BERT does (`create_pretraining_data.py`, May 2019).
    """
    unit = unit_starts(input_ids, position_ids, vocabulary).ravel().cumsum().reshape(input_ids.shape) - 1
    chosen = (generator.random(unit[-1, -1] + 1) < probability)[unit] & ~vocabulary.is_special[input_ids]
    labels = np.where(chosen, input_ids, IGNORE_INDEX)
    fate = generator.random(input_ids.shape)
    random_ids = vocabulary.ordinary_ids[generator.integers(0, len(vocabulary.ordinary_ids), input_ids.shape)]
    hidden = np.where(chosen & (fate < 0.8), vocabulary.mask_token_id, input_ids)
    return np.where(chosen & (fate >= 0.9), random_ids, hidden), labels


def sentence_ends(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Places in a document's tokens (n,) at which a sentence begins after another one's end, ascending.

    A place within a token counts as none.
    """
    text = b"".join([vocabulary.pieces[token] for token in tokens.tolist()]).decode(errors="ignore")
    found = [(m.end("end"), m.end()) for m in _SENTENCE_END.finditer(text) if m.group("end") is not None]
    if not found:
        return np.empty(0, dtype=np.int64)
    ends, starts = np.asarray(found).T
    # A document that was cut may begin within a character: those bytes belong to no character, and count none.
    read = vocabulary.num_characters[tokens].cumsum()
    places = np.searchsorted(read, starts, side="right")  # what follows has all of the next sentence
    return places[(places > 0) & (places < len(tokens)) & (read[places - 1] >= ends)]


def sentence_pairs(
    batch: Batch, rows: np.ndarray, vocabulary: Vocabulary, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The text of `rows` as packed pairs `<bos> A <sep> B`, for next-sentence prediction (Devlin et al. 2019).

    Each document is divided into parts of equal length, as near as can be to a length that is drawn for the micro-batch:
    the whole sequence, half of it, a quarter, down to 64 tokens, so that short pairs give many targets and long ones
    keep masked tokens' wide context (BERT: 128 and 512). A part is cut at the sentence end nearest to its middle.

    Two parts of the same language and of different documents, wherever in the micro-batch, make a couple: both B are cut
    to the shorter one's length, and in half of the couples they change places (label 1; else 0). Each A, each B, each
    pair of lengths is thus as likely with one label as with the other, and nothing but what the texts say can tell.

    A part without a sentence end far enough from its ends, or without a partner, has no label; it is read, for masking.

    Args:
        rows: (n,) rows of the batch to return; the others lend partners.

    Returns:
        input_ids (n, T); position_ids (n, T), from 0 in each pair and in the padding; labels (n, T), at each pair's first
        token 0 or 1, elsewhere and without a label -100.
    """
    length = batch.input_ids.shape[1]
    is_text = ~vocabulary.is_special[batch.input_ids]
    # Pieces of documents; those of one document that a shorter sequence length divides are not strangers to each other.
    begins = batch.position_ids == 0
    is_new = begins.copy()
    is_new[1:, 0] = (batch.rows[1:] != batch.rows[:-1]) | (batch.input_ids[1:, 0] == vocabulary.bos_token_id)
    piece = (begins.ravel().cumsum() - 1)[is_text.ravel()]
    sizes = np.bincount(piece, minlength=begins.sum())
    documents = (is_new.ravel().cumsum() - 1)[begins.ravel()]
    row_of_piece = np.nonzero(begins)[0]
    tokens = batch.input_ids[is_text]

    halvings = generator.integers(0, int(np.log2(max(1, length / _LEAST_PAIR))) + 1)
    part_length = (length >> int(halvings)) - 2  # without <bos> and <sep>
    parts = np.maximum(1, sizes // part_length) * (sizes > 0)
    piece_of_part = np.repeat(np.arange(len(sizes)), parts)
    number = np.arange(len(piece_of_part)) - np.repeat(parts.cumsum() - parts, parts)
    size, share = sizes[piece_of_part], parts[piece_of_part]
    offset = (sizes.cumsum() - sizes)[piece_of_part]
    starts, stops = offset + size * number // share, offset + size * (number + 1) // share

    bounds = sizes.cumsum()
    ends = [sentence_ends(tokens[b - s : b], vocabulary) + b - s for s, b in zip(sizes, bounds, strict=True) if s]
    ends = np.concatenate([*ends, [2 * len(tokens) + length]])  # the last one is far from everything
    middles = (starts + stops) // 2
    after = np.searchsorted(ends, middles)
    before = np.maximum(after - 1, 0)
    cuts = np.where(np.abs(ends[before] - middles) <= np.abs(ends[after] - middles), ends[before], ends[after])
    has_cut = (cuts - starts >= _LEAST_PART) & (stops - cuts >= _LEAST_PART)

    # Couples: with the parts of a language in the order of their documents, one half apart are different documents.
    part_document, part_row = documents[piece_of_part], row_of_piece[piece_of_part]
    langs = np.asarray(batch.lang)[part_row]
    partner = np.full(len(cuts), -1)
    mixed_documents = generator.permutation(part_document.max(initial=0) + 1)
    mixed_parts = generator.permutation(len(cuts))
    for lang in np.unique(langs):
        mine = np.flatnonzero((langs == lang) & has_cut)
        mine = mine[np.lexsort((mixed_parts[mine], mixed_documents[part_document[mine]]))]
        half = len(mine) // 2
        one, other = mine[:half], mine[half : 2 * half]
        strangers = part_document[one] != part_document[other]
        partner[one[strangers]], partner[other[strangers]] = other[strangers], one[strangers]
    coins = generator.integers(0, 2, len(cuts))
    labels = np.where(partner >= 0, coins[np.minimum(np.arange(len(cuts)), partner)], IGNORE_INDEX)
    second_sizes = stops - cuts
    second_sizes = np.where(partner >= 0, np.minimum(second_sizes, second_sizes[partner]), second_sizes)
    second_starts = np.where(labels == 1, cuts[partner], cuts)

    out = np.full((len(rows), length), vocabulary.pad_token_id, dtype=np.int64)
    position_ids, targets = np.zeros_like(out), np.full_like(out, IGNORE_INDEX)
    for i, row in enumerate(rows):
        place = 0
        for part in np.flatnonzero(part_row == row):
            pair = [[vocabulary.bos_token_id], tokens[starts[part] : cuts[part] if has_cut[part] else stops[part]]]
            if has_cut[part]:
                second = tokens[second_starts[part] : second_starts[part] + second_sizes[part]]
                pair += [[vocabulary.sep_token_id], second]
            if length - place <= _LEAST_PART:  # the row is full
                break
            written = np.concatenate(pair)[: length - place]
            stop = place + len(written)
            out[i, place:stop], position_ids[i, place:stop] = written, np.arange(len(written))
            if not has_cut[part] or len(written) > len(pair[1]) + 2 + _LEAST_PART:
                targets[i, place] = labels[part]
            place = stop
        position_ids[i, place:] = np.arange(length - place)
    return out, position_ids, targets


class PretrainingLosses(nn.Module):
    """A model with its losses, summed over the micro-batch's targets, as one module for DDP and FSDP2 to wrap: they
    gather weights where this module is called, so every forward pass goes through it."""

    def __init__(self, model: nn.Module, z_loss_weight: float = 0.0):
        super().__init__()
        self.model = model
        self.z_loss_weight = z_loss_weight

    def forward(
        self,
        inputs: Inputs | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mode: str = "causal",
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """The summed loss of each kind that the inputs have: "causal", "mlm", "nsp".

        With `input_ids` (n, T) in their place, the logits (n, T, V) of the tokens read in `attention_mode`.
        """
        if inputs is None:
            states = self.model.model(input_ids, attention_mode=attention_mode, use_cache=False).last_hidden_state
            return project(self.model.lm_head, states)
        sums = {}
        if inputs.causal:
            states, labels = self._read(inputs.causal, "causal")
            sums["causal"] = self._token_loss(states, labels)
        if inputs.bidirectional:
            states, labels = self._read(inputs.bidirectional, "bidirectional")
            keep = labels != IGNORE_INDEX  # few: a head that cannot take chunks should not see the others
            sums["mlm"] = self._token_loss(states[keep][None], labels[keep][None])
            if "next_sentence_label" in inputs.bidirectional:
                label = inputs.bidirectional["next_sentence_label"]
                keep = label != IGNORE_INDEX
                logits = self.model.nsp_head(states[keep]).float()  # (pairs, 2)
                sums["nsp"] = nn.functional.cross_entropy(logits, label[keep], reduction="sum")
        return sums

    def _read(self, tensors: dict[str, torch.Tensor], mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.model.model(
            tensors["input_ids"], position_ids=tensors["position_ids"], attention_mode=mode, use_cache=False
        ).last_hidden_state
        return states, tensors["labels"]

    def _token_loss(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        head, weight = self.model.lm_head, self.z_loss_weight if self.training else 0.0  # no part of a held-out score
        return language_model_loss(head, states, labels, True, num_items_in_batch=1, z_loss_weight=weight)[0]
