"""The page answers as the recipes do, shows text as text, and says what spoke for an answer; the Space holds the same page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from septet.data.errors import UserError
from septet.data.pack import load_tokenizer
from septet.modeling import modeling_septet, register
from septet.modeling.checkpoint import save_model
from septet.tasks.harness.metrics import entities
from septet.tasks.harness.task import Defaults, Example, get_task
from septet.tasks.hub import publish_space, serve
from septet.tasks.hub.upload import UploadConfig

TEXTS = {
    "en": "The cat number 3 sleeps on the warm roof. It rained 5 times last week! Who reads book 7?",
    "fr": "Le chat numéro 3 dort sur le toit chaud. Il a plu 5 fois la semaine dernière !",
    "zh": "第3只猫睡在温暖的屋顶上。上周下了5场雨！谁在读第7本书？",
}
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
HOSTILE = '<img src=x onerror=alert(1)> 第3只猫 & "the cat" {{7*7}} \u202e'


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    from septet.tasks.hub import page

    return page


@pytest.fixture(scope="module")
def folders(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads of random weights, large enough that answers differ."""
    register()
    torch.manual_seed(3)
    made = {}
    for name in ("classification", "ner", "qa"):
        task = get_task(name)
        fields = {**config.to_dict(), "attention_mode": "bidirectional", "initializer_range": 0.5}
        fields["id2label"] = LABELS if name == "ner" else {0: "sports", 1: "cooking", 2: "law"}
        fields["label2id"] = {label: number for number, label in fields["id2label"].items()}
        if name == "qa":
            del fields["id2label"], fields["label2id"]
        model = getattr(modeling_septet, task.head)(type(config)(**{**fields, "trained_heads": [task.head]}))
        made[name] = tmp_path_factory.mktemp("page") / name
        save_model(model, tokenizer, made[name])
    return made


@pytest.fixture(scope="module")
def answerers(page, folders: dict[str, Path]) -> dict:
    return {task: page.Answerer(task, folder) for task, folder in folders.items()}


def test_entities_are_the_recipe_s(page, answerers: dict) -> None:
    answerer, found = answerers["ner"], 0
    for lang, text in TEXTS.items():
        words = [match.group() for match in page.WORD.finditer(text)]
        joint = "" if lang == "zh" else " "
        spaced = joint.join(words)  # as the recipe joins them
        example = Example("0", lang, {"tokens": words}, ["O"] * len(words))
        [row] = get_task("ner").predict(answerer.model, answerer.tokenizer, [example], 1)
        pieces, rows = answerer.entities(spaced)
        expected = sorted(entities(row["prediction"]), key=lambda entity: entity[1])
        assert [(entity, kind) for entity, kind, _ in rows] == [
            (joint.join(words[a:b]), kind) for kind, a, b in expected
        ]
        assert "".join(piece for piece, _ in pieces) == spaced
        assert all(0.2 < share <= 1 for *_, share in rows)
        found += len(rows)
    assert found > 10


def test_answers_are_the_recipe_s(answerers: dict) -> None:
    answerer, seen = answerers["qa"], set()
    long = "Who sleeps on the warm roof when it rains? " * 3  # more than half of the context
    for question, lang in (("Who sleeps?", "en"), ("Qui dort ?", "fr"), ("谁在读书？", "zh"), (long, "fr")):
        example = Example("0", lang, {"question": question, "context": TEXTS[lang]}, [])
        [row] = get_task("qa").predict(answerer.model, answerer.tokenizer, [example], 1)
        pieces, share = answerer.answer(question, TEXTS[lang])
        [answer] = [piece for piece, kind in pieces if kind == "answer"]
        assert "".join(piece for piece, _ in pieces) == TEXTS[lang]
        assert 0 < share <= 1
        assert answer == row["prediction"]
        seen.add(answer)
    assert len(seen) > 2


def test_what_is_written_is_the_recipe_s(page, config, packed: Path, tmp_path: Path) -> None:
    """Also of a text that does not fit, and of one that spells a control token."""
    task, tokenizer = get_task("translation"), load_tokenizer(packed / "tokenizer")
    torch.manual_seed(5)
    fields = {**config.to_dict(), "attention_mode": "prefix", "initializer_range": 0.5, "trained_heads": [task.head]}
    model = modeling_septet.SeptetForCausalLM(type(config)(**fields))
    task.finish(model, tokenizer, Defaults(max_new_tokens=12))
    save_model(model, tokenizer, tmp_path / "final")
    answerer = page.Answerer("translation", tmp_path / "final")
    written = set()
    for text in (TEXTS["en"][:30], TEXTS["fr"], "the <|target|> cat"):
        [row] = task.predict(answerer.model, answerer.tokenizer, [task.showcase({"text": text})], 1)
        assert answerer.write(text) == row["prediction"]
        written.add(row["prediction"])
    assert len(written) == 3


def test_attributions_add_up_to_the_text_and_to_the_score(page, answerers: dict) -> None:
    """Integrated gradients are complete: what the words contribute is what the score differs from that of padding."""
    from captum.attr import LayerIntegratedGradients

    answerer, text = answerers["classification"], TEXTS["en"][:60]
    found = answerer.classify(text)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    shares = answerer.attributions(text, "law")
    assert "".join(piece for piece, _ in shares) == text
    assert max(abs(share) for _, share in shares) == 1
    assert any(piece.strip() == "number" for piece, _ in shares)  # whole words, of several pieces here
    ids = answerer.tokenizer(text, return_tensors="pt").input_ids
    assert len(ids[0]) > len(shares)
    model, pad = answerer.model, torch.full_like(ids, answerer.tokenizer.pad_token_id)
    embeddings = model.get_input_embeddings()
    exact = LayerIntegratedGradients(lambda i: model(input_ids=i).logits, embeddings)
    contributed = exact.attribute(ids, pad, target=2, n_steps=200, internal_batch_size=50).sum(-1)[0]
    with torch.no_grad():
        score, padding = model(ids).logits[0, 2], embeddings(pad)
        handle = embeddings.register_forward_hook(lambda *_: padding)
        assert contributed.sum() == pytest.approx(float(score - model(ids).logits[0, 2]), rel=0.1, abs=0.02)
        handle.remove()
    steps = {"n_steps": page.INTEGRATION_STEPS, "internal_batch_size": 8}
    contributed = exact.attribute(ids, pad, target=2, **steps).sum(-1)[0].tolist()
    offsets = answerer.tokenizer(text, return_offsets_mapping=True).offset_mapping
    the, cat = (
        sum(c for c, (start, end) in zip(contributed, offsets, strict=True) if low <= start < end <= high)
        for low, high in ((0, 3), (3, 7))
    )
    assert [piece for piece, _ in shares[:2]] == ["The", " cat"]
    assert shares[0][1] / shares[1][1] == pytest.approx(the / cat, rel=0.02)


def test_what_is_typed_stays_text(page, answerers: dict) -> None:
    gradio = pytest.importorskip("gradio")
    for task, answerer in answerers.items():
        given = ("谁？", HOSTILE) if task == "qa" else (HOSTILE,)
        method = {"classification": answerer.classify, "ner": answerer.entities, "qa": answerer.answer}[task]
        result = method(*given)
        if task != "classification":
            assert "".join(piece for piece, _ in result[0]) == HOSTILE
        for bad, message in (("  ", "type a text first"), ("x" * 20_001, "at most 20,000")):
            with pytest.raises(gradio.Error, match=message):
                method(*given[:-1], bad)


def test_the_page_listens_on_loopback_and_answers(folders: dict[str, Path]) -> None:
    client = pytest.importorskip("gradio_client")
    models = tuple(folders[task] for task in ("classification",))
    server = serve.start(serve.ServeConfig(models, task="classification", port=0))
    try:
        assert server.local_url.startswith("http://127.0.0.1:")
        asked = client.Client(server.local_url, verbose=False)
        label, reasons = asked.predict(TEXTS["fr"], api_name="/classify")
        assert label["label"] in ("sports", "cooking", "law")
        assert "".join(row["token"] for row in reasons) == TEXTS["fr"]
        with pytest.raises(UserError, match="is not free"):
            serve.start(serve.ServeConfig(models, task="classification", port=server.server_port))
    finally:
        server.close()
    with pytest.raises(UserError, match="is not written beside it"):
        serve.start(serve.ServeConfig(models))
    with pytest.raises(UserError, match="no model"):
        serve.start(serve.ServeConfig(()))


def test_a_space_holds_the_page_and_pinned_models(page, capsys) -> None:
    models = ("ner=org/names@v1", "qa=org/answers@0123abc")
    wanted = publish_space.PublishSpaceConfig(models, upload=UploadConfig("org/demo"))
    files = publish_space.files_of(wanted)
    assert files["app.py"] == Path(page.__file__)
    assert json.loads(files["models.json"])[1] == {"task": "qa", "model": "org/answers", "revision": "0123abc"}
    assert b'sdk: "gradio"' in files["README.md"]
    assert b"transformers==" in files["requirements.txt"] and b"+cpu" not in files["requirements.txt"]
    publish_space.run(wanted)
    assert "to the space org/demo" in capsys.readouterr().out
    for model, message in (
        ("ner=org/names", "no @revision"),
        ("nerr=org/names@v1", "unknown"),
        ("ner=a/b/c@v1", "is no repository"),
    ):
        with pytest.raises(UserError, match=message):
            publish_space.run(publish_space.PublishSpaceConfig((model,), upload=UploadConfig("org/demo")))
    with pytest.raises(UserError, match="needs a name"):
        publish_space.run(publish_space.PublishSpaceConfig(models))
