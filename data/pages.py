"""What a corpus and a packed set show of themselves: the page a person reads (index.html) and data cards (README.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from septet.data.manifest import plain


def write_corpus_page(
    path: Path,
    config: Any,
    counts: dict[str, Any],
    kept: dict[str, Any],
    dropped: dict[str, list[dict[str, Any]]],
    meanings: dict[str, str],
) -> None:
    """Writes the page: counts by language, lengths, personal data, contamination, and what each reason dropped.

    Args:
        kept: lengths and examples of what stayed, as `steps.Resolve` writes them.
        dropped: examples by reason.
        meanings: what each reason means.
    """
    buckets = sorted({int(bucket) for lengths in kept["lengths"].values() for bucket in lengths})
    page = _template("corpus.html.j2", autoescape=True).render(
        config=config,
        languages=[*config.languages, *(["other"] if set(counts["read"]) - set(config.languages) else [])],
        counts=counts | {name: _folded(counts[name], config.languages) for name in ("read", "train", "validation")},
        dropped_by={reason: _folded(by_lang, config.languages) for reason, by_lang in counts["dropped"].items()},
        inputs=[Path(name).name for name in config.inputs],
        validation_inputs=[Path(name).name for name in config.validation_inputs],
        buckets=range(buckets[0], buckets[-1] + 1),
        lengths=kept["lengths"],
        meanings=meanings,
        kept=kept["examples"],
        dropped=dropped,
    )
    path.write_text(page, encoding="utf-8")


def write_corpus_card(
    path: Path, config: Any, counts: dict[str, Any], digests: dict[str, dict[str, str]], meanings: dict[str, str]
) -> None:
    """Writes the data card, with the YAML by which `datasets.load_dataset` finds the two splits."""
    # A card is published: it names files, not where they lay.
    inputs = [(Path(digest["path"]).name, f"sha256 {digest['sha256']}") for digest in digests.values()]
    inputs += [(name, f"revision {revision}") for name, revision in counts["revisions"].items()]
    card = _template("corpus.md.j2", autoescape=False).render(
        config=plain(config),
        languages=sorted(counts["train"]),
        counts=counts,
        licenses=config.licenses,
        inputs=inputs,
        meanings=meanings,
        version=metadata.version("septet"),
        size=size_category(sum(row["documents"] for row in counts["train"].values())),
    )
    path.write_text(card, encoding="utf-8")


def write_packed_card(path: Path, config: Any, counts: dict[str, Any], corpus: dict[str, Any], digests: Any) -> None:
    """Writes a packed set's data card, with the YAML by which `datasets.load_dataset` finds the two splits.

    Args:
        corpus: the corpus' manifest.
        digests: path and fingerprint of the corpus and the tokenizer.
    """
    card = _template("packed.md.j2", autoescape=False).render(
        config=plain(config),
        counts=counts,
        languages=sorted({name.split("/")[0] for name in counts["train"] if name != "total"}),
        licenses=corpus["config"].get("licenses", {}),
        inputs={name: digest["sha256"] for name, digest in digests.items()},
        version=metadata.version("septet"),
        size=size_category(counts["train"]["total"]["sequences"]),
    )
    path.write_text(card, encoding="utf-8")


def _folded(by_lang: Mapping[str, Any], languages: Sequence[str]) -> dict[str, Any]:
    """Counts by language, all languages but `languages` in one, "other"."""
    out: dict[str, Any] = {lang: by_lang[lang] for lang in languages if lang in by_lang}
    others = [value for lang, value in by_lang.items() if lang not in languages]
    if others and isinstance(others[0], int):
        out["other"] = sum(others)
    elif others:
        out["other"] = dict(sum(map(Counter, others), Counter()))
    return out


def largest(by_source: Mapping[str, Mapping[str, int]], most: int = 100) -> dict[str, Mapping[str, int]]:
    """The `most` sources with the most documents, and the rest in one."""
    ordered = sorted(by_source, key=lambda name: (-by_source[name]["documents"], name))
    if len(ordered) <= most:
        return dict(by_source)
    rest = sum((Counter(by_source[name]) for name in ordered[most:]), Counter())
    return {name: by_source[name] for name in sorted(ordered[:most])} | {f"{len(ordered) - most:,} others": rest}


def licence_of(licenses: Mapping[str, str], name: str) -> str:
    """The licence stated for `language/source`: for the source itself, or for the folders that its name begins with."""
    source = name.split("/", 1)[-1]
    while source not in licenses and "/" in source:
        source = source.rpartition("/")[0]
    return licenses.get(source, "not stated")


def size_category(rows: int) -> str:
    """The Hub's `size_categories` for a number of rows: `10K<n<100K`, say."""
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for k, mark in enumerate(marks):
        if rows < 10 ** (k + 3):
            return f"n<{mark}" if k == 0 else f"{marks[k - 1]}<n<{mark}"
    return "n>1T"


def _cell(text: Any) -> str:
    """Text of a Markdown table's cell: nothing in it ends the cell or is read as HTML."""
    text = " ".join(str(text).replace("\\", "\\\\").replace("|", "\\|").split())
    return text.replace("<", "&lt;")


def _template(name: str, autoescape: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=autoescape, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = lambda number: f"{number:,}"
    environment.filters["mb"] = lambda number: f"{number / 1e6:,.2f}"
    environment.globals |= {"licence_of": licence_of, "largest": largest}
    environment.filters["cell"] = _cell
    return environment.from_string(Path(__file__).with_name(name).read_text(encoding="utf-8"))
