"""A fine-tuned checkpoint as a spaCy component: found by its name, aligned with spaCy's tokens, batched, stored, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from septet.data.errors import UserError
from septet.modeling import modeling_septet
from septet.modeling.checkpoint import save_model
from septet.tasks.harness.metrics import entities
from septet.tasks.harness.task import Example, get_task

spacy = pytest.importorskip("spacy", minversion="3.8")

TOPICS = ["cooking", "sports", "travel"]
FIELDS = {
    "ner": {"labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
    "classification": {"labels": TOPICS, "problem_type": "single_label_classification"},
    "multilabel": {"labels": TOPICS, "problem_type": "multi_label_classification"},
    "regression": {"labels": ["score"], "problem_type": "regression"},
}
TEXTS = {
    "en": [
        "The cat number 3, Mary's, sleeps\n\non the warm roof!",
        "Who reads book 7? " * 20,
        " ",
        "It rained 4 times.",
    ],
    "fr": ["Le chat numéro 3 dort sur l'herbe.", "Il a plu 4 fois !"],
    "zh": ["第3只猫睡在 温暖的屋顶上。", "谁在读第7本书？"],
}


@pytest.fixture(scope="module")
def models(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of random weights, large enough that their answers differ from token to token."""
    root = tmp_path_factory.mktemp("models")
    for name, given in FIELDS.items():
        head = get_task(name).head
        id2label = dict(enumerate(given["labels"]))
        fields = {"id2label": id2label, "label2id": {label: number for number, label in id2label.items()}}
        fields |= {"problem_type": given.get("problem_type"), "trained_heads": [head], "initializer_range": 0.5}
        torch.manual_seed(0)
        settings = {**config.to_dict(), **fields, "attention_mode": "bidirectional"}
        save_model(getattr(modeling_septet, head)(type(config)(**settings)), tokenizer, root / name)
    return {name: root / name for name in FIELDS}


def pipeline(lang: str, factory: str, model: Path, **options):
    nlp = spacy.blank(lang)
    nlp.add_pipe(factory, config={"model": str(model), **options})
    return nlp


def predicted(task_name: str, model: Path, tokenizer, example: Example):
    task = get_task(task_name)
    loaded = getattr(modeling_septet, task.head).from_pretrained(model).eval()
    [row] = task.predict(loaded, tokenizer, [example], 1)
    return row


@pytest.mark.parametrize("lang", TEXTS)
def test_entities_are_the_recipe_s_on_spacy_s_tokens(lang: str, models, tokenizer) -> None:
    nlp = pipeline(lang, "septet_ner", models["ner"])
    found = 0
    for text in TEXTS[lang]:
        doc = nlp(text)
        assert doc.text == text
        if not text.strip():
            assert not doc.ents
            continue
        tokens = [token for token in doc if not token.is_space]
        example = Example("", lang, {"tokens": [token.text for token in tokens]}, [])
        expected = entities(predicted("ner", models["ner"], tokenizer, example)["prediction"])
        expected = {(kind, tokens[start].i, tokens[end - 1].i + 1) for kind, start, end in expected}
        assert {(span.label_, span.start, span.end) for span in doc.ents} == expected
        found += len(expected)
    assert found


def test_entities_of_characters_become_the_words_that_hold_them(models, tokenizer) -> None:
    nlp = pipeline("zh", "septet_ner", models["ner"])
    words = ["第3只", "猫", "睡在", "温暖", "的", "屋顶", "上", "。"]
    doc = nlp(spacy.tokens.Doc(nlp.vocab, words=words, spaces=[False] * len(words)))
    example = Example("", "zh", {"tokens": list("".join(words))}, [])
    characters = entities(predicted("ner", models["ner"], tokenizer, example)["prediction"])
    assert len(characters) > len(doc.ents) > 0  # some shared a word
    wanted = {(doc.char_span(s, e, alignment_mode="expand").start_char, kind) for kind, s, e in characters}
    assert {(span.start_char, span.label_) for span in doc.ents} <= wanted
    covered = {i for _, start, end in characters for i in range(start, end)}
    for token in doc:
        inside = bool(covered & set(range(token.idx, token.idx + len(token))))
        assert bool(token.ent_type) <= inside


def test_an_earlier_component_s_entities_stay(models) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "ANIMAL", "pattern": "cat number"}])
    nlp.add_pipe("septet_ner", config={"model": str(models["ner"])})
    [animal] = [span for span in nlp(TEXTS["en"][0]).ents if span.label_ == "ANIMAL"]
    assert animal.text == "cat number"
    assert len(nlp(TEXTS["en"][0]).ents) > 1


def test_what_an_earlier_component_blocked_stays_without_an_entity(models) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("septet_ner", config={"model": str(models["ner"])})
    found = next(iter(nlp(TEXTS["en"][0]).ents))
    doc = nlp.make_doc(TEXTS["en"][0])
    doc.set_ents([], blocked=[doc[found.start : found.end]])
    doc = nlp.get_pipe("septet_ner")(doc)
    assert doc.ents and not any(token.ent_type for token in doc[found.start : found.end])


@pytest.mark.parametrize("lang", TEXTS)
@pytest.mark.parametrize("name", ["classification", "multilabel"])
def test_categories_are_the_recipe_s_probabilities(lang: str, name: str, models, tokenizer) -> None:
    doc = pipeline(lang, "septet_classifier", models[name])(TEXTS[lang][0])
    row = predicted(name, models[name], tokenizer, Example("", lang, {"text": doc.text}, ""))
    assert doc.cats == pytest.approx(row["probabilities"], abs=1e-4)
    assert sorted(doc.cats) == TOPICS
    assert (sum(doc.cats.values()) == pytest.approx(1, abs=1e-4)) is (name == "classification")


def test_a_stream_is_answered_in_order_and_in_batches(models) -> None:
    nlp = pipeline("en", "septet_ner", models["ner"], batch_size=3)
    nlp.add_pipe("septet_classifier", config={"model": str(models["classification"])})
    sizes = []
    network = nlp.get_pipe("septet_ner").model
    network.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    texts = [f"The cat number {n} sleeps{' on the roof' * (n % 3)}." for n in range(7)] + [" "]
    docs = list(nlp.pipe(texts))
    assert [doc.text for doc in docs] == texts
    assert sizes == [3, 3, 1]
    for doc in docs:
        alone = nlp(doc.text)
        assert [(e.start, e.end, e.label_) for e in doc.ents] == [(e.start, e.end, e.label_) for e in alone.ents]
        assert doc.cats == pytest.approx(alone.cats, abs=1e-4)
    assert docs[-1].cats == {}


def test_a_stored_pipeline_names_its_checkpoint(models, tmp_path: Path) -> None:
    nlp = pipeline("fr", "septet_ner", models["ner"])
    nlp.to_disk(tmp_path / "nlp")
    assert not list((tmp_path / "nlp").rglob("*.safetensors"))
    assert str(models["ner"]) in (tmp_path / "nlp" / "config.cfg").read_text()
    again = spacy.load(tmp_path / "nlp")
    spans = [[(e.start, e.end, e.label_) for e in n(TEXTS["fr"][0]).ents] for n in (nlp, again)]
    assert spans[0] == spans[1] != []


def test_code_beside_the_weights_is_not_run(models, tmp_path: Path) -> None:
    for file in models["ner"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in tmp_path.glob("*.py"):
        file.write_text("raise SystemExit('the code of the folder ran')")
    assert pipeline("en", "septet_ner", tmp_path)(TEXTS["en"][0]).ents


def test_what_cannot_be_a_component_is_refused(models, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"septet_ner: the pipeline's language is 'de', Septet reads en, fr, zh"):
        pipeline("de", "septet_ner", models["ner"])
    with pytest.raises(UserError, match="holds a SeptetForSequenceClassification for single_label.*finetune ner`"):
        pipeline("en", "septet_ner", models["classification"])
    with pytest.raises(
        UserError, match="holds a SeptetForTokenClassification; .*`septet finetune classification or mult"
    ):
        pipeline("en", "septet_classifier", models["ner"])
    with pytest.raises(UserError, match="for regression; this component needs"):
        pipeline("en", "septet_classifier", models["regression"])
    with pytest.raises(UserError, match="owner/name: is no folder here and cannot be downloaded"):
        pipeline("en", "septet_ner", Path("owner/name"))
    with pytest.raises(UserError, match="neither a folder here nor a valid repository name"):
        pipeline("en", "septet_ner", Path("runs/ner/final"))
    with pytest.raises(UserError, match="is not a model folder"):
        pipeline("en", "septet_ner", tmp_path)
    with pytest.raises(ValueError, match="model"):
        spacy.blank("en").add_pipe("septet_ner")
