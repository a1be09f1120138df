"""How right the metrics and their statistics are: against reference implementations, and by simulation.

    python benchmarks/metric_truth.py --data ../shared/data

- Equality: each case is scored alone, and all of them together, by Septet and by the reference; the table gives the
  greatest difference in points. Real cases are references of real sets with predictions that are damaged copies of them;
  random ones are made of random words, labels and tags. SQuAD's, MLQA's and CMRC's scripts are those of tests/test_metrics.py,
  written again from the published ones; nervaluate is asked where it is installed (`pip install nervaluate`).
- Self-scores: references scored against themselves.
- Coverage: test sets of 300 rows are drawn from a population whose score is known; counted is how often the 95 % interval
  holds it. The population is real where there is --data.
- False alarms: pairs of systems that are equally good, on 300 rows; how often each of the tests says otherwise at 5 %, and
  the two together, which is what `septet compare` calls beyond noise.
- Seconds: value and interval of 10,000 segments, on one core, of that process's own time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from septet.data.documents import iterate_rows
from septet.tasks.harness import metrics
from septet.tasks.harness.statistics import compare, interval, resample

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from test_metrics import cmrc_script, mlqa_f1, squad_f1, squad_tokens  # the published scripts, written again

Cases = tuple[list[Any], list[Any]]  # predictions, references
LANGUAGES = ("en", "fr", "zh")
PARTS = ("equality", "self", "coverage", "alarms", "speed")
ROWS = 300  # of a simulated test set
REAL = {  # family -> language -> (set, what of a row is the reference)
    "translation": {
        "en": ("multi30k_en_fr", lambda row: row["translation"]["en"]),
        "fr": ("multi30k_en_fr", lambda row: row["translation"]["fr"]),
        "zh": ("tatoeba_en_zh", lambda row: row["translation"]["zh"]),
    },
    "summarization": {
        "en": ("synopsis_en", lambda row: row["summary"]),
        "fr": ("synopsis_fr", lambda row: row["summary"]),
        "zh": ("csl_title_zh", lambda row: row["summary"]),
    },
    "qa": {
        "en": ("subjqa_en", lambda row: row["answers"]["text"]),
        "fr": ("piaf_fr", lambda row: row["answers"]["text"]),
        "zh": ("drcd_zh", lambda row: row["answers"]["text"]),
    },
    "ner": {
        "en": ("conll2003_en", lambda row: row["ner_tags"]),
        "zh": ("resume_ner_zh", lambda row: row["ner_tags"]),
    },
    "classification": {
        "en": ("trec6_en", lambda row: str(row["label"])),
        "zh": ("csl_category_zh", lambda row: row["label"]),
    },
}
ALPHABET = {
    "en": [
        "the",
        "a",
        "An",
        "U.S.",
        "don't",
        "cat",
        "cats",
        "3.5%",
        "(see",
        "p.2)",
        "Yes!",
        "end.",
        "Why?",
        "well-known",
    ],
    "fr": [
        "l'été",
        "L’École",
        "les",
        "un",
        "«",
        "œuf",
        "»",
        "aujourd'hui",
        "États-Unis",
        "à",
        "fin.",
        "Où ?",
        "3,5",
        "é",
    ],
    "zh": [*"北京大学是中国的我们在年月日一二三，。！？《》", "Python", " 2024 ", "AI", "3.5%", "cannot", "e.g."],
}
TAGS = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real sets; without it, random cases alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", type=int, default=1000, help="of each kind, family and language")
    parser.add_argument("--trials", type=int, default=1000, help="simulated test sets, and pairs of systems")
    parser.add_argument("--population", type=int, default=20_000, help="rows that simulated test sets are drawn from")
    parser.add_argument("--segments", type=int, default=10_000, help="whose scoring is timed")
    return parser.parse_args(arguments)


# ---- cases


def random_reference(family: str, language: str, rng: random.Random) -> Any:
    space = "" if language == "zh" else " "

    def text(least: int = 1, most: int = 30) -> str:
        return space.join(rng.choices(ALPHABET[language], k=rng.randint(least, most)))

    if family == "qa":
        return [] if rng.random() < 0.1 and language == "en" else [text(1, 8) for _ in range(rng.randint(1, 3))]
    if family == "ner":
        return as_iob2(rng.choices(TAGS, k=rng.randint(1, 25)))
    if family == "classification":
        return rng.choices("abcde", weights=[50, 25, 15, 7, 3])[0]
    if family == "multilabel":
        return [label for label in "abcde" if rng.random() < 0.3]
    if family == "regression":
        return rng.gauss(3, 1)
    return text()


def as_iob2(tags: Sequence[str]) -> list[str]:
    from septet.tasks.ner import as_iob2 as mended

    return mended(tags)


def predicted(family: str, reference: Any, labels: Sequence[str], rng: random.Random) -> Any:
    """A prediction of middling quality."""
    if family == "regression":
        return reference + rng.gauss(0, 1)
    if family == "classification":
        return reference if rng.random() < 0.75 else rng.choice(labels)
    if family == "multilabel":
        return [label for label in labels if (label in reference) == (rng.random() < 0.85)]
    if family == "ner":
        return as_iob2([tag if rng.random() < 0.85 else rng.choice(TAGS) for tag in reference])
    if family == "qa":
        reference = rng.choice(reference) if reference else rng.choice(["", "an"])
    if rng.random() < 0.3:  # some are right
        return reference
    space = " " if " " in reference else ""
    parts = reference.split(space) if space else list(reference)
    parts = [part for part in parts for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    if rng.random() < 0.3:
        rng.shuffle(parts)
    return space.join(parts)


def references_of(family: str, language: str, count: int, data: Path | None, rng: random.Random) -> list[Any] | None:
    """`count` references, real ones with `data` (repeated where there are fewer); None where there is no such set."""
    if data is None:
        return [random_reference(family, language, rng) for _ in range(count)]
    if language not in REAL.get(family, {}):
        return None
    name, reference = REAL[family][language]
    rows = iterate_rows(data / name / "train.jsonl.gz")
    real = [reference(row) for row in itertools.islice(rows, count)]
    return (real * (count // len(real) + 1))[:count]


def cases(family: str, language: str, count: int, data: Path | None, seed: int = 0, systems: int = 1) -> Any:
    """(predictions of each system ..., references), or None."""
    rng = random.Random(f"{family} {language} {seed}")
    references = references_of(family, language, count, data, rng)
    if references is None:
        return None
    labels = sorted(set(references)) if family == "classification" else list("abcdef")
    return *([predicted(family, r, labels, rng) for r in references] for _ in range(systems)), references


# ---- equality


def reference_scores(family: str, language: str, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """The scores by the reference implementations that there are, 0 to 100."""
    return {
        "translation": by_sacrebleu, "summarization": by_rouge_score, "qa": by_scripts, "ner": by_seqeval,
        "classification": by_sklearn, "multilabel": by_sklearn_sets, "regression": by_scipy,
    }[family](predictions, references, language)  # fmt: skip


def by_sacrebleu(predictions: list[str], references: list[str], language: str) -> dict[str, float]:
    import sacrebleu

    tokenizer = "zh" if language == "zh" else "13a"
    return {
        "bleu": sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenizer).score,
        "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
        "chrf++": sacrebleu.corpus_chrf(predictions, [references], word_order=2).score,
    }


class Words:
    """Septet's words in the shape that rouge_score asks of a tokenizer."""

    tokenize = staticmethod(metrics.words)


def by_rouge_score(predictions: list[str], references: list[str], language: str) -> dict[str, float]:
    """English by rouge_score's own tokenizer, on texts in ASCII; the others by Septet's words."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, tokenizer=None if language == "en" else Words())
    rows = [
        scorer.score(*("\n".join(metrics.sentences(text)) for text in (reference, prediction)))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100 * float(np.mean([row[name].fmeasure for row in rows])) for name in names}


def by_scripts(predictions: list[str], references: list[list[str]], language: str) -> dict[str, float]:
    rows = list(zip(predictions, references, strict=True))
    if language == "en":
        # SQuAD 2.0: answers that normalisation leaves nothing of are dropped; without an answer the empty one is expected.
        rows = [(p, [a for a in answers if squad_tokens(a)] or [""]) for p, answers in rows]
        return {
            "exact_match": 100 * np.mean([any(squad_tokens(p) == squad_tokens(a) for a in r) for p, r in rows]),
            "f1": 100 * np.mean([max(squad_f1(p, a) for a in r) for p, r in rows]),
        }
    if language == "zh":
        cmrc = [cmrc_script(*row) for row in rows]
        # MLQA's script counts an answer of punctuation alone as wrong whatever is given; SQuAD 2.0's way, as above, is ours.
        kept = [(p, [a for a in answers if mlqa_f1(a, a)] or [""]) for p, answers in rows]
        return {
            "f1": 100 * np.mean([max(mlqa_f1(p, a) if a else not mlqa_f1(p, p) for a in r) for p, r in kept]),
            "cmrc_em": 100 * np.mean([em for em, _ in cmrc]),
            "cmrc_f1": 100 * np.mean([f1 for _, f1 in cmrc]),
        }
    return {}


def by_seqeval(predictions: list[list[str]], references: list[list[str]], language: str) -> dict[str, float]:
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    scores = {}
    if any(tag != "O" for rows in (predictions, references) for tags in rows for tag in tags):  # else seqeval fails
        for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            scores[f"entity_{name}"] = 100 * function(references, predictions, **strict)
    try:
        from nervaluate.entities import Entity
        from nervaluate.strategies import PartialEvaluation
    except ImportError:
        return scores
    counts = np.zeros(4)
    for both in zip(references, predictions, strict=True):
        found = [sorted(metrics.entities(tags), key=lambda entity: entity[1]) for tags in both]
        theirs, mine = ([Entity(label=k, start=s, end=e - 1) for k, s, e in entities] for entities in found)
        result, _ = PartialEvaluation().evaluate(theirs, mine, ["PER", "LOC", "ORG"])
        counts += result.correct, result.partial, len(theirs), len(mine)
    credit, possible, actual = counts[0] + counts[1] / 2, counts[2], counts[3]
    precision, recall = (credit / n if n else 0.0 for n in (actual, possible))
    return scores | {"entity_partial_f1": 200 * precision * recall / (precision + recall) if credit else 0.0}


def by_sklearn(predictions: list[str], references: list[str], language: str) -> dict[str, float]:
    from sklearn import metrics as sklearn

    scores = {"accuracy": sklearn.accuracy_score(references, predictions)}
    scores["mcc"] = sklearn.matthews_corrcoef(references, predictions)
    for name, function, average in (
        ("macro_f1", sklearn.f1_score, "macro"),
        ("micro_f1", sklearn.f1_score, "micro"),
        ("weighted_f1", sklearn.f1_score, "weighted"),
        ("macro_precision", sklearn.precision_score, "macro"),
        ("macro_recall", sklearn.recall_score, "macro"),
    ):
        scores[name] = function(references, predictions, average=average, zero_division=0)
    return {name: 100 * value for name, value in scores.items()}


def by_sklearn_sets(predictions: list[list[str]], references: list[list[str]], language: str) -> dict[str, float]:
    from sklearn import metrics as sklearn
    from sklearn.preprocessing import MultiLabelBinarizer

    columns = MultiLabelBinarizer().fit([*predictions, *references])
    theirs, mine = columns.transform(references), columns.transform(predictions)
    scores = {"exact_match": sklearn.accuracy_score(theirs, mine)}
    for average in ("macro", "micro") if len(columns.classes_) else ():
        scores[f"{average}_f1"] = sklearn.f1_score(theirs, mine, average=average, zero_division=0)
    return {name: 100 * value for name, value in scores.items()}


def by_scipy(predictions: list[float], references: list[float], language: str) -> dict[str, float]:
    from scipy import stats
    from sklearn import metrics as sklearn

    return {
        "pearson": 100 * stats.pearsonr(predictions, references).statistic,
        "spearman": 100 * stats.spearmanr(predictions, references).statistic,
        "mae": sklearn.mean_absolute_error(references, predictions),
        "rmse": sklearn.root_mean_squared_error(references, predictions),
    }


def in_groups(found: Cases, size: int) -> Iterator[Cases]:
    for start in range(0, len(found[0]), size):
        yield tuple(part[start : start + size] for part in found)


def equality(options: argparse.Namespace) -> None:
    print("\n## Equality with the reference implementations\n")
    print("| family | language | cases | of | metrics | greatest difference |\n| --- | --- | ---: | --- | --- | ---: |")
    for data, kind in ((None, "random"), (options.data, "real")):
        if kind == "real" and data is None:
            continue
        for family, language in itertools.product(metrics.FAMILIES, LANGUAGES):
            # Labels and numbers have no language, and mean something in groups alone.
            size = {"classification": 30, "multilabel": 30, "regression": 30}.get(family, 1)
            if size > 1 and kind == "random" and language != "en":
                continue
            found = cases(family, language, options.cases * size, data)
            if found is None:
                continue
            if family == "summarization" and language == "en":
                found = tuple([text.encode("ascii", "replace").decode() for text in part] for part in found)
            worst: dict[str, float] = {}
            for predictions, references in (*in_groups(found, size), found):
                expected = reference_scores(family, language, predictions, references)
                scores = metrics.score(family, predictions, references, language)
                for name, value in expected.items():
                    worst[name] = max(worst.get(name, 0.0), abs(scores[name] - value))
            if worst:
                print(
                    f"| {family} | {language} | {options.cases:,} | {kind} | {', '.join(worst)} | {max(worst.values()):.1e} |",
                    flush=True,
                )


def self_scores(options: argparse.Namespace) -> None:
    print("\n## References scored against themselves\n")
    print("| family | language | cases | scores that are not 100 |\n| --- | --- | ---: | --- |")
    for family, language in itertools.product(metrics.FAMILIES, LANGUAGES):
        found = cases(family, language, options.cases, options.data)
        if found is None:
            continue
        references = found[-1]
        gold = [answers[0] if answers else "" for answers in references] if family == "qa" else references
        scores = metrics.score(family, gold, references, language)
        off = {
            name: value for name, value in scores.items() if abs(value - (0 if name in ("mae", "rmse") else 100)) > 1e-9
        }
        print(f"| {family} | {language} | {len(references):,} | {off or 'none'} |", flush=True)


# ---- simulation

SIMULATED = [
    ("classification", "en", "accuracy"),
    ("classification", "en", "macro_f1"),
    ("classification", "en", "mcc"),
    ("multilabel", "en", "macro_f1"),
    ("regression", "en", "pearson"),
    ("regression", "en", "spearman"),
    ("regression", "en", "rmse"),
    ("translation", "fr", "bleu"),
    ("translation", "fr", "chrf++"),
    ("ner", "en", "entity_f1"),
    ("ner", "en", "entity_partial_f1"),
    ("summarization", "en", "rougeL"),
    ("qa", "zh", "f1"),
    ("qa", "zh", "cmrc_f1"),
]


def populations(
    options: argparse.Namespace, systems: int
) -> Iterator[tuple[str, str, metrics.Metric, list[Any], list[Any]]]:
    for family, language, name in SIMULATED:
        data = options.data if family in REAL else None
        *predictions, references = cases(family, language, options.population, data, systems=systems)
        yield f"{family} | {name}", language, metrics.get(family, name), predictions, references


def statistics_of(
    metric: metrics.Metric, predictions: list[list[Any]], references: list[Any], language: str
) -> list[np.ndarray]:
    """The statistics of each system, as `metrics.difference` gets them."""
    if not metric.joint:
        return [metric.statistics(one, references, [language] * len(references)) for one in predictions]
    systems = len(predictions)
    every = [prediction for one in predictions for prediction in one]
    both = metric.statistics(every, references * systems, [language] * len(every))
    return np.split(both, systems)


def sampler(
    metric: metrics.Metric, predictions: list[list[Any]], references: list[Any], language: str
) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """A function that gives the statistics of a new sample of rows, of each system.

    Of two systems a coin decides, row by row, whose answer is whose: so they are equally good on the population, too.
    """
    ranked = metric.name == "spearman"  # each sample has ranks of its own
    parts = predictions if ranked else statistics_of(metric, predictions, references, language)
    parts = [np.asarray(part) for part in parts]

    def draw(generator: np.random.Generator) -> list[np.ndarray]:
        rows = generator.integers(len(references), size=ROWS)
        drawn = [part[rows] for part in parts]
        if len(drawn) == 2:
            swap = (generator.random(ROWS) < 0.5).reshape(-1, *[1] * (drawn[0].ndim - 1))
            drawn = [np.where(swap, *drawn), np.where(swap, *drawn[::-1])]
        if ranked:
            return statistics_of(metric, [part.tolist() for part in drawn], [references[row] for row in rows], language)
        return drawn

    return draw


def coverage(options: argparse.Namespace) -> None:
    print(f"\n## Coverage of the 95 % interval, {ROWS} rows, {options.trials:,} test sets\n")
    print(
        "| family | metric | true score | covered, % | missed below, % | above, % |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for label, language, metric, predictions, references in populations(options, systems=1):
        generator = np.random.default_rng(0)
        draw = sampler(metric, predictions, references, language)
        [whole] = statistics_of(metric, predictions, references, language)
        truth = float(metric.aggregate(whole.sum(0)))
        missed = np.zeros(2)
        for trial in range(options.trials):
            [sample] = draw(generator)
            value = float(metric.aggregate(sample.sum(0)))
            low, high = interval(metric.aggregate(resample(sample, seed=trial)), value)
            missed += high < truth, low > truth
        shares = 100 * missed / options.trials
        print(f"| {label} | {truth:.1f} | {100 - shares.sum():.1f} | {shares[0]:.1f} | {shares[1]:.1f} |", flush=True)


def alarms(options: argparse.Namespace) -> None:
    print(f"\n## False alarms of paired tests, {ROWS} rows, {options.trials:,} pairs of equal systems\n")
    print(
        "| family | metric | randomisation, % | bootstrap interval, % | both, % |\n| --- | --- | ---: | ---: | ---: |"
    )
    for label, language, metric, predictions, references in populations(options, systems=2):
        generator = np.random.default_rng(1)
        draw = sampler(metric, predictions, references, language)
        counts = np.zeros(3)
        for trial in range(options.trials):
            found = compare(metric, *draw(generator), seed=trial)
            alarm = found["p_value"] <= 0.05, not found["low"] <= 0 <= found["high"]
            counts += *alarm, all(alarm)
        shares = 100 * counts / options.trials
        print(f"| {label} | {shares[0]:.1f} | {shares[1]:.1f} | {shares[2]:.1f} |", flush=True)


def speed(options: argparse.Namespace) -> None:
    print(f"\n## Seconds for {options.segments:,} segments, value and interval of all metrics\n")
    print("| family | language | mean length | seconds |\n| --- | --- | ---: | ---: |")
    for family, language in itertools.product(metrics.FAMILIES, LANGUAGES):
        found = cases(family, language, options.segments, options.data if family in REAL else None)
        if found is None or (family not in REAL and language != "en"):
            continue
        predictions, references = found
        texts = [row[0] if family == "qa" and row else row for row in references]
        length = (
            f"{np.mean([len(text) for text in texts]):.0f}" if family not in ("classification", "regression") else ""
        )
        metrics.compute(family, predictions[:2], references[:2], language)  # imports
        started = time.process_time()
        metrics.compute(family, predictions, references, language)
        print(f"| {family} | {language} | {length} | {time.process_time() - started:.1f} |", flush=True)


def main(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")  # of texts without a token, of constants
    parts = {"equality": equality, "self": self_scores, "coverage": coverage, "alarms": alarms, "speed": speed}
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main(parse())
