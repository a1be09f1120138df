"""What a score has to beat: for each task the simple systems that need no neural network.

Rows are examples, {"id", "lang", "input": {...}, "reference": ...}; predictions have the shape of the task's own.

| task | baselines | source |
|---|---|---|
| translation | copy source | |
| classification | majority class; TF-IDF + logistic regression | |
| qa | word overlap | the idea of the sliding window of Richardson et al. (2013), which SQuAD's authors also stood beside theirs |
| summarization | lead sentence | Nenkova (2005) on news |
| ner | gazetteer | the baseline of the CoNLL-2003 shared task (Tjong Kim Sang & De Meulder 2003) |
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from septet.tasks.harness.metrics import HAN, entities, words

Row = dict[str, Any]

# A sentence ends at a full-width mark, at . ! ? ; after a Chinese character (half-width typing), or at . ! ? … before white
# space; closing quotes and brackets belong to it.
SENTENCE = re.compile(
    rf".+?(?:[。！？；][」』”’）]*|(?<=[{HAN}])[.!?;]+|[.!?…]+(?:[\"'”’)\]]|\s?»)*(?=\s)|\Z)", re.DOTALL
)
CLAUSE = re.compile(r"[^,;:，。！？；：、（）()「」『』《》«»“”\"\n]+")


def baselines(task_name: str, train_rows: Sequence[Row], test_rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Predictions of each baseline of a task for `test_rows`; {} for a task that has none."""
    return {name: predict(train_rows, test_rows) for name, predict in BASELINES.get(task_name, {}).items()}


def copy_source(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """The source text as it stands: names, numbers and cognates alone."""
    return [row["input"]["source"] for row in test_rows]


def majority_class(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """The label that train holds most often."""
    [(label, _)] = Counter(row["reference"] for row in train_rows).most_common(1)
    return [label] * len(test_rows)


def tfidf_logistic_regression(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """Logistic regression over TF-IDF of single words and pairs, in Chinese of characters and pairs of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def features(text: str) -> list[str]:
        tokens = words(text)
        return tokens + [f"{first} {second}" for first, second in pairwise(tokens)]

    labels = [row["reference"] for row in train_rows]
    if len(set(labels)) == 1:
        return majority_class(train_rows, test_rows)
    model = make_pipeline(
        TfidfVectorizer(analyzer=features, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([row["input"]["text"] for row in train_rows], labels)
    return [str(label) for label in model.predict([row["input"]["text"] for row in test_rows])]


def word_overlap(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """See `overlapping_span`."""
    return [overlapping_span(row["input"]["question"], row["input"]["context"]) for row in test_rows]


def overlapping_span(question: str, context: str) -> str:
    """The clause closest to the question in the sentence closest to it.

    Closest is what shares most different words with the question, in Chinese characters; the earlier one of equals.
    """
    asked = set(words(question))

    def shared(text: str) -> int:
        return len(asked & set(words(text)))

    sentence = max(sentences(context), key=shared, default="")
    clauses = (clause.strip(" .!?…'’") for clause in CLAUSE.findall(sentence))
    return max(clauses, key=shared, default=sentence)


def lead_sentence(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """The document's first sentence."""
    return [next(iter(sentences(row["input"]["document"])), "") for row in test_rows]


def sentences(text: str) -> list[str]:
    """The sentences of English, French or Chinese text, without white space around them."""
    return [sentence for found in SENTENCE.findall(text) if (sentence := found.strip())]


def gazetteer(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[list[str]]:
    """Tags the token sequences that are entities in train, the longest first, from the left, by their most frequent type."""
    types = defaultdict(Counter)
    for row in train_rows:
        for kind, start, end in sorted(entities(row["reference"])):
            types[tuple(row["input"]["tokens"][start:end])][kind] += 1
    known = {tokens: kinds.most_common(1)[0][0] for tokens, kinds in types.items()}
    longest = max(map(len, known), default=0)
    return [_matched(row["input"]["tokens"], known, longest) for row in test_rows]


def _matched(tokens: Sequence[str], known: dict[tuple[str, ...], str], longest: int) -> list[str]:
    tags, position = ["O"] * len(tokens), 0
    while position < len(tokens):
        for length in range(min(longest, len(tokens) - position), 0, -1):
            kind = known.get(tuple(tokens[position : position + length]))
            if kind:
                tags[position : position + length] = [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
                break
        else:
            length = 1
        position += length
    return tags


BASELINES: dict[str, dict[str, Callable[[Sequence[Row], Sequence[Row]], list[Any]]]] = {
    "translation": {"copy source": copy_source},
    "classification": {"majority class": majority_class, "TF-IDF + logistic regression": tfidf_logistic_regression},
    "qa": {"word overlap": word_overlap},
    "summarization": {"lead sentence": lead_sentence},
    "ner": {"gazetteer": gazetteer},
}
