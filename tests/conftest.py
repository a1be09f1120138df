"""What the tests share: a corpus of a few documents, its tokenizer and packed set, and a tiny configuration."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

# Before any Hugging Face import: no test may reach the network, and code from checkpoints goes where this process alone
# looks, since Python looks for the package `transformers_modules` once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="septet-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

SENTENCES = {
    "en": ["The cat number {n} sleeps on the warm roof.", "It rained {n} times last week!", "Who reads book {n}?"],
    "fr": [
        "Le chat numéro {n} dort sur le toit chaud.",
        "Il a plu {n} fois la semaine dernière !",
        "Qui lit le livre {n} ?",
    ],
    "zh": ["第{n}只猫睡在温暖的屋顶上。", "上周下了{n}场雨！", "谁在读第{n}本书？"],
}


@pytest.fixture(scope="session")
def documents() -> list[dict[str, str]]:
    """Twelve documents in three languages, each of a dozen sentences."""
    rows = []
    for lang, sentences in SENTENCES.items():
        for document in range(4):
            numbers = range(document * 100, document * 100 + 12)
            text = " ".join(sentences[n % 3].format(n=n) for n in numbers)
            rows.append({"text": text, "source": "test", "lang": lang})
    return rows


@pytest.fixture(scope="session")
def packed(documents: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of sequences of 64 tokens, made by the stages themselves."""
    from septet.data import corpus, pack, tokenizer
    from septet.data.documents import write_jsonl

    root = tmp_path_factory.mktemp("route")
    write_jsonl(root / "train.jsonl.gz", documents)
    held_out = [
        {**row, "text": row["text"].replace("1", "7")} for row in documents if row["text"] != documents[0]["text"]
    ]
    write_jsonl(root / "held_out.jsonl.gz", held_out[2::3])
    corpus.run(
        corpus.CorpusConfig(
            (str(root / "train.jsonl.gz"),),
            root / "corpus",
            validation_inputs=(str(root / "held_out.jsonl.gz"),),
            quality="none",  # the sentences are few
            near_duplicates=0,
        )
    )
    tokenizer.run(tokenizer.TokenizerConfig(root / "corpus", root / "tokenizer", vocab_size=384))
    pack.run(pack.PackConfig(root / "corpus", root / "tokenizer", root / "packed", sequence_length=64))
    return root / "packed"


@pytest.fixture(scope="session")
def tokenizer(packed: Path):
    from septet.data.pack import load_tokenizer

    return load_tokenizer(packed / "tokenizer")


@pytest.fixture(scope="session")
def config(tokenizer):
    """The tiny shape with the test tokenizer's vocabulary."""
    from septet.data.pack import describe
    from septet.modeling.presets import preset_config

    described = describe(tokenizer)
    return preset_config(
        "tiny", vocab_size=described["vocab_size"], max_position_embeddings=64, **described["special_ids"]
    )


@pytest.fixture(scope="session")
def unregistered():
    """A context in which transformers' Auto classes do not know Septet, so that they take the code from the checkpoint."""
    import transformers

    from septet.modeling.configuration_septet import AUTO_MAP

    registries = [transformers.models.auto.configuration_auto.CONFIG_MAPPING]
    registries += [getattr(transformers, name)._model_mapping for name in AUTO_MAP if name != "AutoConfig"]

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            for registry in registries:
                patch.setattr(registry, "_extra_content", {})
            yield

    return context
