"""What a score has to beat: for each task the simple systems that need no network, or the smallest one.

Rows are examples, {"id", "lang", "input": {...}, "reference": ...}; predictions have the shape of the task's own. All of
them learn from the rows of train alone, on one core, and give the same again.

| task | baselines | source |
|---|---|---|
| translation | copy source | |
| classification | majority class; TF-IDF + logistic regression; word2vec + logistic regression | see `tfidf`, `word_means` |
| multilabel | TF-IDF + logistic regression; word2vec + logistic regression | |
| regression | TF-IDF + ridge regression; word2vec + ridge regression | |
| qa | word overlap | the idea of the sliding window of Richardson et al. (2013), which SQuAD's authors also stood beside theirs |
| summarization | lead sentence | Nenkova (2005) on news |
| ner | gazetteer; word2vec + logistic regression | CoNLL-2003's baseline (Tjong Kim Sang & De Meulder 2003); see `word_windows` |
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from septet.tasks.harness.metrics import entities, sentences, words

Row = dict[str, Any]

CLAUSE = re.compile(r"[^,;:，。！？；：、（）()「」『』《》«»“”\"\n]+")
TEXT_VECTOR, TOKEN_VECTOR = 100, 50  # dimensions; 50 as Collobert et al. (2011)


def baselines(task_name: str, train_rows: Sequence[Row], test_rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Predictions of each baseline of a task for `test_rows`; {} for a task that has none.

    The ones with word vectors are left out, and a line says so, where gensim is not installed.
    """
    found = {}
    for name, predict in BASELINES.get(task_name, {}).items():
        try:
            found[name] = predict(train_rows, test_rows)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] != "gensim":
                raise
            print(f"baseline {name!r}: left out, gensim is not installed (pip install gensim)", flush=True)
    return found


def copy_source(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """The source text as it stands: names, numbers and cognates alone."""
    return [row["input"]["source"] for row in test_rows]


def majority_class(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[str]:
    """The label that train holds most often."""
    [(label, _)] = Counter(row["reference"] for row in train_rows).most_common(1)
    return [label] * len(test_rows)


def on_texts(
    features: Callable[..., Any], model: Callable[..., Any], train_rows: Sequence[Row], test_rows: Sequence[Row]
) -> list[Any]:
    """Predictions of a linear model of the texts' features."""
    train, test = features(*([row["input"]["text"] for row in rows] for rows in (train_rows, test_rows)))
    return model(train, [row["reference"] for row in train_rows], test)


def tfidf(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Sublinear TF-IDF of words and pairs of words, in Chinese of characters, and of two to five characters of a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    def terms(text: str) -> list[str]:
        tokens = words(text)
        return tokens + [f"{first} {second}" for first, second in pairwise(tokens)]

    vectorizer = make_union(
        TfidfVectorizer(analyzer=terms, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    return vectorizer.fit_transform(train), vectorizer.transform(test)


def word_means(train: Sequence[str], test: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, TEXT_VECTOR) standardised means of the words' vectors, in Chinese of the characters'."""
    from sklearn.preprocessing import StandardScaler

    texts = [words(text) for text in train]
    vectors = word_vectors(texts, TEXT_VECTOR)

    def means(texts: Iterable[Sequence[str]]) -> np.ndarray:
        return np.stack([np.mean([vectors[word] for word in text] or [vectors[""]], axis=0) for text in texts])

    scaler = StandardScaler()
    return scaler.fit_transform(means(texts)), scaler.transform(means(map(words, test)))


def word_vectors(texts: Sequence[Sequence[str]], size: int) -> dict[str, np.ndarray]:
    """Static vectors of these texts' words, zeros for any other: skip-grams with negative sampling (Mikolov et al. 2013)."""
    from gensim.models import Word2Vec

    # As many passes as make two million words: small sets need more than the usual five, large ones should not take minutes.
    epochs = min(50, max(5, 2_000_000 // max(1, sum(map(len, texts)))))
    options = {"vector_size": size, "sg": 1, "min_count": 1, "epochs": epochs}
    trained = Word2Vec(texts, **options, workers=1, seed=0).wv  # several workers would not give the same again
    found = defaultdict(lambda: np.zeros(size, np.float32))
    found.update(zip(trained.index_to_key, trained.vectors, strict=True))
    return found


def classes(train: Any, references: Sequence[str], test: Any) -> list[str]:
    """The likeliest label by `logistic_regression`."""
    if len(set(references)) == 1:
        return [references[0]] * test.shape[0]
    return [str(label) for label in logistic_regression(train).fit(train, references).predict(test)]


def label_sets(train: Any, references: Sequence[Sequence[str]], test: Any) -> list[list[str]]:
    """Every label that `logistic_regression` finds likelier than not."""
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer()
    model = logistic_regression(train).fit(train, binarizer.fit_transform(references))
    predicted = np.reshape(model.predict(test), (-1, len(binarizer.classes_)))  # of one label it is no matrix
    return [sorted(map(str, found)) for found in binarizer.inverse_transform(predicted)]


def logistic_regression(train: Any) -> Any:
    """One class against the rest, the two of equal weight, by liblinear (Fan et al. 2008): for sparse features in the dual,
    which is 20 to 40 times as fast as L-BFGS on all classes at once, with the same scores."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    dense = isinstance(train, np.ndarray)
    options = {"C": 1, "tol": 1e-3} if dense else {"C": 30, "tol": 0.1, "dual": True}
    model = LogisticRegression(**options, solver="liblinear", max_iter=1000, class_weight="balanced", random_state=0)
    return OneVsRestClassifier(model)


def numbers(train: Any, references: Sequence[float], test: Any) -> list[float]:
    """Ridge regression."""
    from sklearn.linear_model import Ridge

    return [float(value) for value in Ridge().fit(train, references).predict(test)]


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


def word2vec_tagger(train_rows: Sequence[Row], test_rows: Sequence[Row]) -> list[list[str]]:
    """A tag for each token by itself, from the windows of `word_windows`; an I- that goes on with nothing becomes a B-."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    from septet.tasks.ner import as_iob2

    train, test = ([row["input"]["tokens"] for row in rows] for rows in (train_rows, test_rows))
    vectors = word_vectors([[token.lower() for token in tokens] for tokens in train], TOKEN_VECTOR)
    windows = word_windows(train, vectors)
    # Without a hidden layer this is multinomial logistic regression, by Adam in batches: five passes, or 300,000 tokens.
    passes = max(5, 300_000 // len(windows))
    model = MLPClassifier(
        (), batch_size=min(256, len(windows)), max_iter=passes, learning_rate_init=3e-3, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(windows, [tag for row in train_rows for tag in row["reference"]])
    tags = iter(model.predict(word_windows(test, vectors)).tolist())
    return [as_iob2([next(tags) for _ in tokens]) for tokens in test]


def word_windows(sequences: Sequence[Sequence[str]], vectors: dict[str, np.ndarray]) -> np.ndarray:
    """(tokens, features) float32 of each token and its two neighbours on either side.

    Features: the vector of the lower-case token, and whether the token is in capitals, begins with one, holds one, holds a
    digit, as in the network of Collobert et al. (2011), of which this is the input layer.
    """

    def features(token: str) -> np.ndarray:
        written = [token.isupper(), token[:1].isupper(), token != token.lower(), any(map(str.isdigit, token))]
        return np.concatenate([vectors[token.lower()], written], dtype=np.float32)

    known = {token: features(token) for token in {token for tokens in sequences for token in tokens}}
    edge = [np.zeros(TOKEN_VECTOR + 4, np.float32)] * 2
    padded = [[*edge, *map(known.__getitem__, tokens), *edge] for tokens in sequences]
    windows = [np.concatenate(rows[i : i + 5]) for rows in padded for i in range(len(rows) - 4)]
    return np.stack(windows) if windows else np.zeros((0, 5 * (TOKEN_VECTOR + 4)), np.float32)


BASELINES: dict[str, dict[str, Callable[[Sequence[Row], Sequence[Row]], list[Any]]]] = {
    "translation": {"copy source": copy_source},
    "classification": {
        "majority class": majority_class,
        "TF-IDF + logistic regression": partial(on_texts, tfidf, classes),
        "word2vec + logistic regression": partial(on_texts, word_means, classes),
    },
    "multilabel": {
        "TF-IDF + logistic regression": partial(on_texts, tfidf, label_sets),
        "word2vec + logistic regression": partial(on_texts, word_means, label_sets),
    },
    "regression": {
        "TF-IDF + ridge regression": partial(on_texts, tfidf, numbers),
        "word2vec + ridge regression": partial(on_texts, word_means, numbers),
    },
    "qa": {"word overlap": word_overlap},
    "summarization": {"lead sentence": lead_sentence},
    "ner": {"gazetteer": gazetteer, "word2vec + logistic regression": word2vec_tagger},
}
