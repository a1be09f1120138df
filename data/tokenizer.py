"""Train a byte-level BPE tokenizer on a corpus, with the same number of bytes of each language."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septet.data.documents import iterate_rows
from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, read_manifest, write_json, writing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_SPECIAL_TOKENS = 16
"""Ids 0 to 15; the last nine are reserved, so that a later need finds its place without a new vocabulary."""
_NAMED = ("pad", "bos", "eos", "sep", "mask", "source", "target")
SPECIAL_TOKENS = tuple(
    f"<|{name}|>" for name in (*_NAMED, *(f"reserved_{i}" for i in range(len(_NAMED), NUM_SPECIAL_TOKENS)))
)

# The split of DeepSeek-V3 (https://huggingface.co/deepseek-ai/DeepSeek-V3, tokenizer.json): digits in groups of up to
# three as in GPT-4 and Llama 3, runs of Chinese characters and kana by themselves, then words, punctuation and white
# space. llama.cpp knows it by the name `deepseek-v3`, so that a GGUF export splits text as it was split here. Qwen2's
# split, the other candidate, gave no more bytes a token in English and French and 1.7 % more in Chinese (8,192 tokens,
# 6 MB a language), but merges Chinese with Latin letters.
DEEPSEEK_V3_SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_MAX_REPEATS = 4


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    corpus: Path
    """Folder that `septet corpus` made."""
    output: Path = Path("build/tokenizer")
    """Folder for the tokenizer, as AutoTokenizer reads it, report.json and manifest.json."""
    vocab_size: int = 8192
    """Number of tokens, 16 special ones and 256 bytes among them; best a multiple of 128."""
    megabytes_per_language: float = 32.0
    """Text to learn from, in 10^6 bytes of UTF-8 of each language; training takes some 25 times as much memory."""
    overwrite: bool = False
    """Make the output again if it holds something else."""


def run(config: TokenizerConfig) -> Path:
    """Trains and saves the tokenizer; see `TokenizerConfig`.

    Raises:
        UserError: the corpus is not whole, or the vocabulary has no room for the special tokens and the bytes.
    """
    smallest = NUM_SPECIAL_TOKENS + 256
    if config.vocab_size < smallest:
        raise UserError(
            f"--vocab-size {config.vocab_size}: is too small; {NUM_SPECIAL_TOKENS} special tokens and 256 bytes need "
            f"{smallest}; give {smallest} or more, say 8192"
        )
    manifest = read_manifest(config.corpus, "corpus")
    if finished(config.output, "tokenizer", config, {"corpus": config.corpus}, config.overwrite):
        return config.output
    with writing(config.output, "tokenizer", config, {"corpus": config.corpus}) as out:
        available = {lang: counts["bytes"] for lang, counts in manifest["counts"]["train"].items()}
        tokenizer, taken = train(config, available)
        save(tokenizer, out.path)
        report = measure(tokenizer, config.corpus)
        write_json(out.path / "report.json", report)
        out.counts.update(
            vocab_size=tokenizer.get_vocab_size(), vocab_size_asked=config.vocab_size, bytes_learnt_from=taken
        )
    rates = ", ".join(f"{lang} {row['bytes_per_token']:.2f}" for lang, row in report["languages"].items())
    reached = out.counts["vocab_size"]
    short = (
        ""
        if reached == config.vocab_size
        else f" of the {config.vocab_size:,} asked for (the corpus holds no more pairs)"
    )
    print(f"tokenizer: {reached:,} tokens{short}; bytes a token: {rates}; {config.output}", flush=True)
    return config.output


def train(config: TokenizerConfig, available: dict[str, int]) -> tuple[Tokenizer, dict[str, int]]:
    """The trained tokenizer, and how many bytes of each language it learnt from.

    Args:
        available: bytes of each language in the corpus's training part.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from tqdm import tqdm

    tokenizer = Tokenizer(models.BPE())
    # No normaliser: what is decoded must be what was encoded, in any Unicode.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK_V3_SPLITS),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    goals = byte_goals(available, int(config.megabytes_per_language * 1e6))
    taken: Counter[str] = Counter()
    with tqdm(total=sum(goals.values()), unit="B", unit_scale=True, desc="tokenizer: reading", disable=None) as bar:
        tokenizer.train_from_iterator(balanced_texts(config.corpus, available, goals, taken, bar.update), trainer)
    bos, sep = "<|bos|>", "<|sep|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {sep} $B",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, sep)],
    )
    return tokenizer, dict(sorted(taken.items()))


def byte_goals(available: dict[str, int], limit: int) -> dict[str, int]:
    """How many bytes of each language to learn from: as many as of the largest, but at most `limit`.

    Equal bytes are the fair measure: the same content takes a similar number of bytes in the three languages, while
    in characters Chinese is some three times as dense and would get three times the weight. A smaller language is read
    again to get there, at most four times, lest a few rare words fill the vocabulary (the four is ours).
    """
    goal = min(limit, max(available.values()))
    return {lang: min(goal, _MAX_REPEATS * size) for lang, size in available.items()}


def balanced_texts(
    corpus: Path, available: dict[str, int], goals: dict[str, int], taken: Counter[str], progress: Any
) -> Iterator[str]:
    """The training texts, each language thinned out or repeated evenly so that it gives its goal in bytes.

    Args:
        taken: bytes given so far, by language; counted up here.
        progress: is called with the bytes of each text.
    """
    seen: Counter[str] = Counter()
    for row in _rows(corpus / "train"):
        lang, size = row["lang"], len(row["text"].encode())
        seen[lang] += size
        while taken[lang] * available[lang] < goals[lang] * seen[lang]:
            taken[lang] += size
            progress(size)
            yield row["text"]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Saves the tokenizer so that `AutoTokenizer` loads it offline and without code of ours."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",  # not eos: a model that never sees eos as a target never learns to stop
        bos_token="<|bos|>",
        cls_token="<|bos|>",
        eos_token="<|eos|>",
        sep_token="<|sep|>",
        mask_token="<|mask|>",
        extra_special_tokens=list(SPECIAL_TOKENS[5:]),
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def measure(tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """How well each language's validation text is packed.

    Returns:
        By language: documents; bytes_per_token; tokens_per_word (between white space), or tokens_per_character for
        Chinese; vocabulary_share, the share of all tokens that occur at least once in the language's text.
    """
    totals: dict[str, Counter] = {}
    used: dict[str, set[int]] = {}
    for row in _rows(corpus / "validation"):
        lang, text = row["lang"], row["text"]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        units = sum(not character.isspace() for character in text) if lang == "zh" else len(text.split())
        totals.setdefault(lang, Counter()).update(documents=1, bytes=len(text.encode()), tokens=len(ids), units=units)
        used.setdefault(lang, set()).update(ids)
    languages = {
        lang: {
            "documents": total["documents"],
            "bytes_per_token": round(total["bytes"] / total["tokens"], 4),
            f"tokens_per_{'character' if lang == 'zh' else 'word'}": round(total["tokens"] / total["units"], 4),
            "vocabulary_share": round(len(used[lang]) / tokenizer.get_vocab_size(), 4),
        }
        for lang, total in sorted(totals.items())
    }
    return {"schema_version": 1, "vocab_size": tokenizer.get_vocab_size(), "languages": languages}


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl.gz")):
        yield from iterate_rows(file)


if __name__ == "__main__":
    run_cli(run, TokenizerConfig)
