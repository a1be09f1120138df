"""Train a byte-level BPE tokenizer on a corpus, fair to its languages, and report what each language pays.

Plain training takes the same number of bytes of each language. `--parity` trains several times on the same text,
counting the words of dearly encoded languages more often, until the same content costs about the same in all of them.

What is reported, on the corpus's validation text: bytes per token, tokens per word or character and the vocabulary's
share, by language. What is reported on a parallel text: a language's *premium* (Petrov et al. 2023, "Language Model
Tokenizers Introduce Unfairness Between Languages"), the tokens of its sentences over the tokens of the same sentences
in English, and the *spread*, the largest premium over the smallest, English's own premium of 1 among them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septet.data.documents import check_columns, iterate_rows
from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import finished, read_manifest, write_json, writing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens: a text that spells `<|eos|>` is text like any other."""

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
# Training cuts longer pieces, in characters; encoding never does. The trainer goes through a piece once for every merge
# inside it: one unbroken run of 300,000 Chinese characters took more than two minutes instead of 7 s. On real text
# (65,536 tokens, 10 MB a language) tokens and memory are the same as without the cut; at 8 characters the held-out
# Chinese takes 0.35 % more tokens for 8 % less memory, at 4 characters 1.3 % more for 22 % less.
_LONGEST_PIECE = 16
_PART = 100_000  # characters of a document given to the tokenizer at once: it needs some hundred bytes for each

# Parity, all ours. With three languages of 16 MB and 65,536 tokens a language at eight times the weight of another
# lowered its relative cost by 9 %: the step that would close a gap at once is the premium to the power of 20, and half
# of that does not overshoot.
_PARITY_ROUNDS = 4
_PARITY_STEP = 10.0
_EVEN_ENOUGH = 1.05  # a spread to stop at
_MAX_WEIGHT = 8.0
_MAX_LOSS = 0.03  # of compression against plain training: what the evenness may cost

KNOWN = {"tekken": "mistral-common", "qwen": "dashscope"}
"""Well-known tokenizers to compare with, and the packages that carry them: Mistral's Tekken (version 240911, as its own
library counts) and Qwen's (with which Qwen 1 to 3 split text; NFC first, as its own library does)."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    corpus: Path
    """Folder that `septet corpus` made."""
    output: Path = Path("build/tokenizer")
    """Folder for the tokenizer, as AutoTokenizer reads it, report.json and manifest.json."""
    vocab_size: int = 8192
    """Number of tokens, 16 special ones and 256 bytes among them; best a multiple of 128."""
    megabytes_per_language: float = 12.0
    """Text to learn from, in 10^6 bytes of UTF-8 of each language. Takes memory, most of it for Chinese, whose runs of
    characters hardly repeat: 0.25 GiB and 85 MiB for each of these megabytes (1.3 GiB at 12), a quarter more on 64
    cores. At 20 the held-out text takes 0.3 % fewer tokens."""
    parallel: tuple[Path, ...] = ()
    """Parallel text for the report and --parity: .jsonl, .json or .parquet (.gz too) with rows
    {"translation": {"en": ..., "fr": ..., "zh": ...}} of English and at least one other language of the corpus."""
    parity: bool = False
    """Even out what the same content costs in tokens, measured on --parallel; the held-out text takes at most 3 % more
    tokens for it. Trains up to four times."""
    compare: tuple[str, ...] = ()
    """Tokenizers to count beside: folders with a tokenizer.json, or `tekken` or `qwen` from their owners' packages."""
    overwrite: bool = False
    """Make the output again if it holds something else."""


def run(config: TokenizerConfig) -> Path:
    """Trains and saves the tokenizer; see `TokenizerConfig`.

    Raises:
        UserError: the corpus is not whole, the vocabulary has no room for the special tokens and the bytes, the parallel
            text is missing or unusable, or a tokenizer to compare with is unknown or not installed.
    """
    smallest = NUM_SPECIAL_TOKENS + 256
    if config.vocab_size < smallest:
        raise UserError(
            f"--vocab-size {config.vocab_size}: is too small; {NUM_SPECIAL_TOKENS} special tokens and 256 bytes need "
            f"{smallest}; give {smallest} or more, say 8192"
        )
    if config.parity and not config.parallel:
        raise UserError("--parity: evens out the cost of a parallel text; there is none; give one with --parallel")
    manifest = read_manifest(config.corpus, "corpus")
    inputs = {"corpus": config.corpus, **{f"parallel {path}": path for path in config.parallel}}
    inputs |= {f"compare {name}": file for name in config.compare if (file := _checked_name(name)) is not None}
    if finished(config.output, "tokenizer", config, inputs, config.overwrite):
        return config.output
    available = {lang: counts["bytes"] for lang, counts in manifest["counts"]["train"].items()}
    for _ in _translations(config.parallel, available, config.parity) if config.parallel else ():
        pass  # what is wrong with the parallel text is said before the training
    with writing(config.output, "tokenizer", config, inputs) as out:
        if config.parity:
            tokenizer, taken, rounds = train_for_parity(config, available)
        else:
            (tokenizer, taken), rounds = train(config, available), []
        save(tokenizer, out.path)
        report = {"schema_version": 1, **_measure_all(*plain_text(tokenizer), config, available)}
        if rounds:
            report["parity_training"] = rounds
        report["compared"] = {name: _measure_all(*known_tokenizer(name), config, available) for name in config.compare}
        write_json(out.path / "report.json", report)
        out.counts.update(
            vocab_size=tokenizer.get_vocab_size(), vocab_size_asked=config.vocab_size, bytes_learnt_from=taken
        )
    reached = out.counts["vocab_size"]
    short = (
        ""
        if reached == config.vocab_size
        else f" of the {config.vocab_size:,} asked for (the corpus holds no more pairs)"
    )
    print(f"tokenizer: {reached:,} tokens{short}; {_in_words(report)}; {config.output}", flush=True)
    for name, row in report["compared"].items():
        print(f"tokenizer: beside it {name}, {row['vocab_size']:,} tokens; {_in_words(row)}", flush=True)
    return config.output


# ---- training ----------------------------------------------------------------------------------------------------------


def train(
    config: TokenizerConfig, available: dict[str, int], weights: dict[str, float] | None = None
) -> tuple[Tokenizer, dict[str, int]]:
    """The trained tokenizer, and how many bytes of each language it learnt from.

    Args:
        available: bytes of each language in the corpus's training part.
        weights: how often each language's words count, at least 1; default: once.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from tqdm import tqdm

    weights = weights or dict.fromkeys(available, 1.0)
    tokenizer = Tokenizer(models.BPE())
    # No normaliser: what is decoded must be what was encoded, in any Unicode.
    tokenizer.pre_tokenizer = _pre_tokenizer((*DEEPSEEK_V3_SPLITS, rf"[\s\S]{{1,{_LONGEST_PIECE}}}"))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    goals = byte_goals(available, int(config.megabytes_per_language * 1e6))
    taken: Counter[str] = Counter()
    total = sum(goals[lang] * weights[lang] for lang in goals)
    with tqdm(total=int(total), unit="B", unit_scale=True, desc="tokenizer: reading", disable=None) as bar:
        texts = balanced_texts(config.corpus, available, goals, weights, taken, bar.update)
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _pre_tokenizer(DEEPSEEK_V3_SPLITS)
    bos, sep = "<|bos|>", "<|sep|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {sep} $B",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, sep)],
    )
    return tokenizer, dict(sorted(taken.items()))


def train_for_parity(
    config: TokenizerConfig, available: dict[str, int]
) -> tuple[Tokenizer, dict[str, int], list[dict[str, Any]]]:
    """Trains with weights that even out the premiums of the parallel text.

    Parity-aware BPE (Foroutan et al. 2025, arXiv 2508.04796) gives each merge to the language that is compressed worst
    at that moment. The library's trainer has no place for such a choice; what it maximises, the count of a pair, can be
    weighted by language instead, and the weights that make the largest premium smallest are the multipliers of the same
    problem. They are sought in a few rounds: the first is plain training (all weights 1), each later one multiplies the
    best round's weights by a power of its premiums. A round that takes more than 3 % more tokens for the validation text
    than the first, or is not more even than the best, halves the power.

    Returns:
        The tokenizer of the most even round, the bytes it learnt from, and of each round: weights, premiums, spread,
        tokens of the validation text against the first round's, and whether it is the one that was kept.
    """
    weights, step = dict.fromkeys(sorted(available), 1.0), _PARITY_STEP
    rounds: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    for number in range(_PARITY_ROUNDS):
        tokenizer, taken = train(config, available, weights)
        encode, vocab_size = plain_text(tokenizer)
        parity = measure_parity(encode, config.parallel, available)
        tokens = sum(row["tokens"] for row in measure(encode, vocab_size, config.corpus).values())
        now = {"weights": weights, **parity, "tokens": tokens, "against_plain": 0.0, "kept": False}
        now["against_plain"] = round(tokens / (rounds[0]["tokens"] if rounds else tokens) - 1, 4)
        rounds.append(now)
        if not best or (now["against_plain"] <= _MAX_LOSS and now["spread"] < best["spread"]):
            best, kept = now, (tokenizer, taken)
        else:
            step /= 2
        shown = ", ".join(f"{lang} x{weights[lang]:.2f}" for lang in weights)
        print(f"tokenizer: parity, round {number + 1} ({shown}): spread {now['spread']:.3f}, "
              f"{now['against_plain']:+.2%} tokens", flush=True)  # fmt: skip
        if best["spread"] <= _EVEN_ENOUGH:
            break
        pulled = {lang: best["weights"][lang] * best["premiums"][lang] ** step for lang in weights}
        smallest = min(pulled.values())
        weights = {lang: round(min(_MAX_WEIGHT, pull / smallest), 3) for lang, pull in pulled.items()}
        if any(weights == earlier["weights"] for earlier in rounds):
            break
    best["kept"] = True
    return *kept, rounds


def _pre_tokenizer(splits: Sequence[str]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_goals(available: dict[str, int], limit: int) -> dict[str, int]:
    """How many bytes of each language to learn from: as many as of the largest, but at most `limit`.

    Equal bytes are the fair measure: the same content takes a similar number of bytes in the three languages, while
    in characters Chinese is some three times as dense and would get three times the weight. A smaller language is read
    again to get there, at most four times, lest a few rare words fill the vocabulary (the four is ours).
    """
    goal = min(limit, max(available.values()))
    return {lang: min(goal, _MAX_REPEATS * size) for lang, size in available.items()}


def balanced_texts(
    corpus: Path,
    available: dict[str, int],
    goals: dict[str, int],
    weights: dict[str, float],
    taken: Counter[str],
    progress: Callable[[int], Any],
) -> Iterator[str]:
    """The training texts, each language thinned out or repeated evenly so that it gives its goal in bytes.

    Args:
        weights: by language, how often each text comes, on average. Repetition takes time but no memory, and no text is
            lost to it.
        taken: bytes given so far, by language, a weighted text's once; counted up here.
        progress: is called with the bytes of each text.
    """
    seen: Counter[str] = Counter()
    due: Counter[str] = Counter()
    for row in _rows(corpus / "train"):
        lang = row["lang"]
        for part in _parts(row["text"]):
            size = len(part.encode())
            seen[lang] += size
            while taken[lang] * available[lang] < goals[lang] * seen[lang]:
                taken[lang] += size
                due[lang] += weights[lang]
                while due[lang] >= 1:
                    due[lang] -= 1
                    progress(size)
                    yield part


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Saves the tokenizer so that `AutoTokenizer` loads it offline and without code of ours.

    As everywhere in transformers, a text that spells a special token becomes that token: prompts and chat templates need
    it. Text from outside must not: encode documents with `tokenizer(texts, split_special_tokens=True, ...)`.
    """
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


# ---- measuring ---------------------------------------------------------------------------------------------------------


def plain_text(tokenizer: Tokenizer) -> tuple[Encode, int]:
    """How the tokenizer encodes text that comes from outside, and the size of its vocabulary."""
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size()


def known_tokenizer(name: str) -> tuple[Encode, int]:
    """One of `KNOWN`, or the tokenizer.json of a folder: how it encodes plain text, and the size of its vocabulary.

    Raises:
        UserError: the name is unknown, its package is not installed, or the tokenizer.json cannot be read.
    """
    file = _checked_name(name)
    if file is not None:
        from tokenizers import Tokenizer

        try:
            return plain_text(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises no narrower one
            raise UserError(
                f"{file}: is not a tokenizer ({error}); make it again, or leave it out of --compare"
            ) from error
    try:
        if name == "tekken":
            import mistral_common
            from mistral_common.tokens.tokenizers.tekken import Tekkenizer

            tekken = Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")
            return lambda text: tekken.encode(text, bos=False, eos=False), tekken.n_words
        from dashscope import get_tokenizer

        qwen = get_tokenizer("qwen-turbo")
        return lambda text: qwen.encode(text, allowed_special=set()), len(qwen.decoder)
    except (ImportError, OSError, ValueError) as error:
        raise _not_installed(name, str(error)) from error


def _checked_name(name: str) -> Path | None:
    """The tokenizer.json that the name of a tokenizer to compare with stands for; None for a known one."""
    if name in KNOWN:
        if importlib.util.find_spec(KNOWN[name].replace("-", "_")) is None:
            raise _not_installed(name, "the package is not installed")
        return None
    if (Path(name) / "tokenizer.json").is_file():
        return Path(name) / "tokenizer.json"
    raise UserError(
        f"--compare {name}: is no folder with a tokenizer.json; {suggestion(name, KNOWN)}; give one of these"
    )


def _not_installed(name: str, reason: str) -> UserError:
    return UserError(
        f"--compare {name}: cannot be used ({reason}); {KNOWN[name]} carries it; pip install {KNOWN[name]}"
    )


def _measure_all(
    encode: Encode, vocab_size: int, config: TokenizerConfig, languages: Collection[str]
) -> dict[str, Any]:
    measured = {"vocab_size": vocab_size, "languages": measure(encode, vocab_size, config.corpus)}
    return measured | ({"parity": measure_parity(encode, config.parallel, languages)} if config.parallel else {})


def measure(encode: Encode, vocab_size: int, corpus: Path) -> dict[str, dict[str, Any]]:
    """How well each language's validation text is packed.

    Returns:
        By language: documents; tokens; bytes_per_token; tokens_per_word (between white space), or tokens_per_character
        for Chinese (white space not counted); vocabulary_share, the share of all tokens that occur at least once in the
        language's text.
    """
    totals: dict[str, Counter] = {}
    used: dict[str, set[int]] = {}
    for row in _rows(corpus / "validation"):
        lang = row["lang"]
        total = totals.setdefault(lang, Counter())
        total["documents"] += 1
        for part in _parts(row["text"]):
            ids = encode(part)
            units = sum(not character.isspace() for character in part) if lang == "zh" else len(part.split())
            total.update(bytes=len(part.encode()), tokens=len(ids), units=units)
            used.setdefault(lang, set()).update(ids)
    return {
        lang: {
            "documents": total["documents"],
            "tokens": total["tokens"],
            "bytes_per_token": round(total["bytes"] / max(1, total["tokens"]), 4),
            f"tokens_per_{'character' if lang == 'zh' else 'word'}": round(total["tokens"] / max(1, total["units"]), 4),
            "vocabulary_share": round(len(used[lang]) / vocab_size, 4),
        }
        for lang, total in sorted(totals.items())
    }


def measure_parity(encode: Encode, files: Sequence[Path], languages: Collection[str]) -> dict[str, Any]:
    """What the same content costs in each language.

    Returns:
        reference: English, or the first language of the corpus by name where it has none; premiums: by language, its
        tokens over the reference's, summed over the rows that have both; rows: how many those are; spread: the largest
        premium over the smallest, the reference's 1 among them.

    Raises:
        UserError: see `_translations`.
    """
    reference = _reference(languages)
    totals: dict[str, Counter] = {}
    for translation in _translations(files, languages):
        tokens = {lang: len(encode(text)) for lang, text in translation.items()}
        for lang in tokens.keys() - {reference}:
            totals.setdefault(lang, Counter()).update(rows=1, tokens=tokens[lang], reference=tokens[reference])
    premiums = {lang: round(total["tokens"] / total["reference"], 4) for lang, total in totals.items()}
    premiums[reference] = 1.0
    return {
        "reference": reference,
        "premiums": dict(sorted(premiums.items())),
        "rows": {lang: totals[lang]["rows"] for lang in sorted(totals)},
        "spread": round(max(premiums.values()) / min(premiums.values()), 4),
    }


def _reference(languages: Collection[str]) -> str:
    return "en" if "en" in languages else min(languages)


def _translations(files: Sequence[Path], languages: Collection[str], every: bool = False) -> Iterator[dict[str, str]]:
    """The usable rows of parallel files, {language: text}: those with the reference and at least one other language.

    Raises:
        UserError: a row without `translation`, a language that the corpus lacks, a text that is no string; after the
            last row, if none was usable, or (with `every`) if a language of the corpus was in none.
    """
    reference, met = _reference(languages), set()
    for file in files:
        for number, row in enumerate(iterate_rows(Path(file)), start=1):
            place = f"{file}, row {number}"
            check_columns(place, row, ["translation"], "give --parallel rows of translations")
            given = row["translation"]
            if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
                raise UserError(
                    f'{place}: its translation is {str(given)[:60]!r}; it must be {{"en": text, "fr": text, ...}}; '
                    "mend or remove the row"
                )
            for lang in given:
                if lang not in languages:
                    raise UserError(
                        f"{place}: language {lang!r} is not in the corpus; {suggestion(lang, languages)}; "
                        "name it so, or remove it"
                    )
            texts = {lang: text for lang, text in given.items() if text and not text.isspace()}
            if reference in texts and len(texts) > 1:
                met |= texts.keys()
                yield texts
    missing = sorted(set(languages) - met)
    if not met or (every and missing):
        lacking = ", ".join(missing) if met else "any other language of the corpus"
        raise UserError(
            f"--parallel {', '.join(map(str, files))}: no row has both {reference} and {lacking}; parity needs some; "
            "give more parallel text"
        )


def _in_words(report: dict[str, Any]) -> str:
    """The middle of the printed line: `bytes a token: en 3.9, fr 4.2; the same content: fr 1.08, ... (spread 1.20)`."""
    line = "bytes a token: "
    line += ", ".join(f"{lang} {row['bytes_per_token']:.2f}" for lang, row in report["languages"].items())
    if "parity" in report:
        parity = report["parity"]
        line += "; tokens for the same content: "
        line += ", ".join(f"{lang} {premium:.3f}" for lang, premium in parity["premiums"].items())
        line += f" (spread {parity['spread']:.3f})"
    return line


# ---- reading -----------------------------------------------------------------------------------------------------------


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl.gz")):
        yield from iterate_rows(file)


def _parts(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PART):
        yield text[start : start + _PART]


if __name__ == "__main__":
    run_cli(run, TokenizerConfig)
