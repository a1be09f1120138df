"""Write the input embeddings in word2vec's text format, which gensim, fastText's tools and spaCy read.

The first line has the numbers of vectors and of dimensions; each other line a token, a space, and its vector, with the
nine digits that give every float32 back: `gensim.models.KeyedVectors.load_word2vec_format("embeddings.txt")`.
Tokens are spelled in the byte alphabet of byte-level BPE (GPT-2's: a space is Ġ), so that none contains white space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from septet.data.errors import UserError
from septet.data.manifest import Writing

FILE_NAME = "embeddings.txt"


def write_word2vec(config: Any, model_class: Any, source_config: Any, out: Writing) -> str:
    """Writes `embeddings.txt`, reads it back, returns the closing line; embeddings without a token are left out.

    Raises:
        UserError: no tokenizer, two tokens of one spelling, or damaged weights.
    """
    import numpy
    from tqdm import tqdm

    from septet.modeling.checkpoint import check_weights
    from septet.modeling.convert import copy_tokenizer

    name = "embed_tokens.weight" if model_class.__name__ == "SeptetModel" else "model.embed_tokens.weight"
    vectors = check_weights(config.model, model_class, source_config)[name].read().float().numpy()  # (V, H)
    tokens = spelled_tokens(config.model, len(vectors))
    line = " ".join(["%.9g"] * vectors.shape[1])
    with open(out.path / FILE_NAME, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(f"{len(tokens)} {vectors.shape[1]}\n")
        for token_id, token in tqdm(tokens.items(), desc="export: writing", unit="vector", disable=None):
            stream.write(f"{token} {line % tuple(vectors[token_id])}\n")
    with open(out.path / FILE_NAME, encoding="utf-8", newline="\n") as stream:
        stream.readline()
        for (token_id, token), row in zip(tokens.items(), stream, strict=True):
            word, *values = row.rstrip("\n").split(" ")
            if word != token or not numpy.array_equal(numpy.array(values, numpy.float32), vectors[token_id]):
                raise UserError(f"{FILE_NAME}: token {token_id} reads back otherwise than it was written")
    copy_tokenizer(config.model, out.path)
    out.counts.update(vectors=len(tokens), dimensions=vectors.shape[1], bytes=(out.path / FILE_NAME).stat().st_size)
    return f"{len(tokens):,} vectors of {vectors.shape[1]} dimensions, read back equal"


def spelled_tokens(folder: Path, vocab_size: int) -> dict[int, str]:
    """Id -> spelling without white space; a `UserError` where two would be the same."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder}: has no tokenizer.json, which names the vectors; put it beside the weights")
    tokenizer = Tokenizer.from_file(str(file))
    alphabet, spelled, seen = byte_alphabet(), {}, {}
    for token_id in range(vocab_size):
        if (token := tokenizer.id_to_token(token_id)) is None:
            continue
        if any(character.isspace() for character in token):  # an added token; a learnt one is in the alphabet
            token = "".join(alphabet[byte] for byte in token.encode())
        if token in seen:
            raise UserError(f"{file}: tokens {seen[token]} and {token_id} are both spelled {token!r}; rename one")
        spelled[token_id], seen[token] = token, token_id
    return spelled


def byte_alphabet() -> list[str]:
    """The printable character of each byte: itself where it is one, else U+0100 and on, in order (GPT-2's table)."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]
