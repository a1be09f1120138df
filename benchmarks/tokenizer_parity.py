"""What the same content costs in each language: plain and parity-aware BPE beside well-known tokenizers.

    septet corpus --inputs DATA/pretrain/{en,fr,zh}.jsonl.gz \
        --validation-inputs DATA/pretrain/{en,fr,zh}_validation.jsonl.gz --output build/parity/corpus
    pip install mistral-common dashscope
    python benchmarks/tokenizer_parity.py --data DATA --corpus build/parity/corpus

Two tokenizers are trained on the corpus by `septet tokenizer`, each in a process of its own, whose seconds and peak
resident memory (VmHWM) are given: one plain, one with `--parity` on the training splits of the parallel sets. All are
then measured on text that neither has seen: bytes per token, tokens per word (en, fr) or character (zh) and all tokens
against plain training on the corpus's validation part; premiums and their spread on the parallel sets' other splits,
each premium against the English of the same rows (en-fr: Multi30k, image captions; en-zh: Tatoeba, short sentences).
The definitions stand in `septet.data.tokenizer`. Well-known tokenizers have other vocabularies, learnt from other text:
their compression says what is usual, not who is better. The one without its package is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from septet.data import tokenizer
from septet.data.errors import UserError
from septet.data.manifest import read_manifest

SPREAD, LOSS, PEAK_MIB = 1.25, 0.03, 2048  # at most; the targets
PARALLEL = {"multi30k_en_fr": ("validation", "test_2016_flickr"), "tatoeba_en_zh": ("validation",)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of multi30k_en_fr, tatoeba_en_zh"
    )
    parser.add_argument("--corpus", type=Path, default=Path("build/parity/corpus"), help="what `septet corpus` made")
    parser.add_argument(
        "--output", type=Path, default=Path("build/parity"), help="folder for tokenizers and parity.json"
    )
    parser.add_argument("--vocab-size", type=int, default=65536)
    parser.add_argument(
        "--megabytes-per-language", type=float, default=tokenizer.TokenizerConfig.megabytes_per_language
    )
    parser.add_argument("--compare", default="tekken,qwen", help="names or folders, as `septet tokenizer --compare`")
    parser.add_argument("--train", choices=("plain", "parity"), help=argparse.SUPPRESS)  # a training's own process
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    """Trains one tokenizer in this process; the last line it prints is what that took."""
    parity = options.train == "parity"
    started = time.perf_counter()
    tokenizer.run(
        tokenizer.TokenizerConfig(
            corpus=options.corpus,
            output=options.output / options.train,
            vocab_size=options.vocab_size,
            megabytes_per_language=options.megabytes_per_language,
            parallel=tuple(options.data / name / "train.jsonl.gz" for name in PARALLEL) if parity else (),
            parity=parity,
            overwrite=True,
        )
    )
    status = Path("/proc/self/status").read_text().split("\n")
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_mib": round(peak)}))


def measure(name: str, options: argparse.Namespace, languages: set[str]) -> dict[str, Any]:
    files = [options.data / folder / f"{split}.jsonl.gz" for folder, splits in PARALLEL.items() for split in splits]
    encode, vocab_size = tokenizer.known_tokenizer(name)
    return {
        "vocab_size": vocab_size,
        "languages": tokenizer.measure(encode, vocab_size, options.corpus),
        "parity": tokenizer.measure_parity(encode, files, languages),
    }


def main(options: argparse.Namespace) -> Path:
    languages = set(read_manifest(options.corpus, "corpus")["counts"]["train"])
    rows: dict[str, dict[str, Any]] = {}
    for name in ("plain", "parity"):
        command = [sys.executable, __file__, *sys.argv[1:], "--train", name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.rstrip("\n").split("\n")
        print("\n".join(output[:-1]), file=sys.stderr, flush=True)
        rows[name] = {**json.loads(output[-1]), **measure(str(options.output / name), options, languages)}
    for name in filter(None, options.compare.split(",")):
        try:
            rows[name] = measure(name, options, languages)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    for row in rows.values():
        row["tokens"] = sum(part["tokens"] for part in row["languages"].values())
        row["tokens_against_plain"] = round(row["tokens"] / rows["plain"]["tokens"] - 1, 4)
    parity = rows["parity"]
    holds = {
        "spread": parity["parity"]["spread"] <= SPREAD,
        "tokens_against_plain": parity["tokens_against_plain"] <= LOSS,
        "peak_mib": max(rows[name]["peak_mib"] for name in ("plain", "parity")) < PEAK_MIB,
    }
    report = {
        "corpus_megabytes": {
            lang: count["bytes"] / 1e6
            for lang, count in read_manifest(options.corpus, "corpus")["counts"]["train"].items()
        },
        "megabytes_per_language": options.megabytes_per_language, "tokenizers": rows,
        "targets": {"spread": SPREAD, "tokens_against_plain": LOSS, "peak_mib": PEAK_MIB}, "targets_hold": holds,
        "hardware": f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}",
    }  # fmt: skip
    place = options.output / "parity.json"
    place.write_text(json.dumps(report, indent=2) + "\n")
    print(table(rows, sorted(languages)))
    answers = ", ".join(f"{name} {'yes' if ok else 'no'}" for name, ok in holds.items())
    print(f"targets hold: {answers}; {place}")
    return place


def table(rows: dict[str, dict[str, Any]], languages: list[str]) -> str:
    """Markdown, one row a tokenizer; languages in alphabetical order, separated by slashes."""
    each = " / ".join(languages)
    head = ["tokenizer", "tokens", f"bytes per token {each}", f"tokens per word or character {each}",
            f"premium {each}", "spread", "tokens against plain", "peak MiB", "s"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        found = [row["languages"][lang] for lang in languages]
        units = [part.get("tokens_per_word", part.get("tokens_per_character")) for part in found]
        lines.append(
            [
                name,
                f"{row['vocab_size']:,}",
                " / ".join(f"{part['bytes_per_token']:.2f}" for part in found),
                " / ".join(f"{unit:.2f}" for unit in units),
                " / ".join(f"{row['parity']['premiums'][lang]:.3f}" for lang in languages),
                f"{row['parity']['spread']:.3f}",
                f"{row['tokens_against_plain']:+.2%}",
                f"{row['peak_mib']:,}" if "peak_mib" in row else "",
                f"{row['seconds']:.0f}" if "seconds" in row else "",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    arguments = parse()
    if arguments.train:
        train(arguments)
    else:
        main(arguments)
