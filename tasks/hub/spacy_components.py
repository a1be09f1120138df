"""Fine-tuned checkpoints as components of a spaCy pipeline.

    nlp = spacy.blank("en")
    nlp.add_pipe("septet_ner", config={"model": "runs/ner/final"})
    nlp("Marie Curie was born in Warsaw.").ents

`septet_ner` adds to `doc.ents`, `septet_classifier` to `doc.cats`, each label with its probability; spaCy finds both by
their entry points, without an import. The checkpoint reads a text as it did in training: in English and French spaCy's
tokens with a space between them, in Chinese the characters; white space and blank texts are passed over. `nlp.to_disk`
stores the checkpoint's name, not its weights, so it must still be there when the pipeline is loaded. The model's classes
are this package's: code that lies in a checkpoint or a repository is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import filter_spans, minibatch

from septet.data.errors import UserError
from septet.tasks.harness.task import Example, Task, get_task

LANGUAGES = ("en", "fr", "zh")


class Component:
    """A recipe's `predict` over the documents of a pipeline; subclasses say what it reads and where answers go.

    Raises:
        UserError: a pipeline of another language, or a checkpoint that is not there, is damaged, or is of another task.
    """

    recipes: ClassVar[dict[str | None, str]]
    """problem type of the checkpoint -> task"""

    def __init__(self, nlp: Language, name: str, model: str, revision: str | None, batch_size: int):
        if nlp.lang not in LANGUAGES:
            raise UserError(
                f"{name}: the pipeline's language is {nlp.lang!r}, Septet reads {', '.join(LANGUAGES)}; "
                f'begin with spacy.blank("en"), or another of those'
            )
        self.name, self.lang, self.batch_size = name, nlp.lang, batch_size
        self.task, self.model, self.tokenizer = load(model, revision, self.recipes)

    def __call__(self, doc: Doc) -> Doc:
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 1000) -> Iterator[Doc]:
        """The documents with their answers, in order; `batch_size` of them are read ahead and sorted by length, the
        component's own batches are smaller."""
        for docs in minibatch(stream, batch_size):
            written = [doc for doc in docs if doc.text.strip()]
            examples = [self.example(doc) for doc in written]
            answers = self.task.predict(self.model, self.tokenizer, examples, self.batch_size) if examples else []
            for doc, answer in zip(written, answers, strict=True):
                self.annotate(doc, answer)
            yield from docs

    def example(self, doc: Doc) -> Example:
        """A document as the recipe reads it."""
        raise NotImplementedError

    def annotate(self, doc: Doc, answer: Mapping[str, Any]) -> None:
        """Writes the recipe's answer into the document."""
        raise NotImplementedError


class EntityComponent(Component):
    """Entities; the ones that an earlier component found or blocked stay, and what overlaps them is left out."""

    recipes = {None: "ner"}

    def units(self, doc: Doc) -> list[tuple[int, int]]:
        """(start, end) characters of what gets one tag each."""
        if self.lang == "zh":
            return [(i, i + 1) for i, character in enumerate(doc.text) if not character.isspace()]
        return [(token.idx, token.idx + len(token)) for token in doc if not token.is_space]

    def example(self, doc: Doc) -> Example:
        return Example("", self.lang, {"tokens": [doc.text[start:end] for start, end in self.units(doc)]}, [])

    def annotate(self, doc: Doc, answer: Mapping[str, Any]) -> None:
        from septet.tasks.harness.metrics import entities

        units = self.units(doc)
        spans = [
            doc.char_span(units[first][0], units[end - 1][1], label=kind, alignment_mode="expand")
            for kind, first, end in sorted(entities(answer["prediction"]), key=lambda entity: entity[1])
        ]
        # What an earlier component has named, or blocked (spaCy: a B without a type), is left alone.
        free = [span for span in spans if not any(token.ent_type or token.ent_iob_ == "B" for token in span)]
        doc.ents = [*doc.ents, *filter_spans(free)]


class ClassifierComponent(Component):
    """The probability of each label; they add up to 1 only where a text has exactly one."""

    recipes = {"single_label_classification": "classification", "multi_label_classification": "multilabel"}

    def example(self, doc: Doc) -> Example:
        return Example("", self.lang, {"text": doc.text}, "")

    def annotate(self, doc: Doc, answer: Mapping[str, Any]) -> None:
        doc.cats.update(answer["probabilities"])


def load(model: str, revision: str | None, recipes: Mapping[str | None, str]) -> tuple[Task, Any, Any]:
    """The recipe, the model, on the GPU if there is one, and the tokenizer of a folder or repository.

    Raises:
        UserError: there is no such folder or repository, or it holds no checkpoint of one of the recipes.
    """
    import torch

    from septet.data.manifest import read_json
    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.harness.finetune import check_tokenizer

    folder = require_model_folder(Path(model) if Path(model).is_dir() else downloaded(model, revision))
    config = read_json(folder / "config.json")
    head, problem = (config.get("architectures") or ["?"])[0], config.get("problem_type")
    task = get_task(recipes[problem]) if problem in recipes else None
    if task is None or head != task.head:
        raise UserError(
            f"{model}: holds a {head}{f' for {problem}' if problem else ''}; this component needs a checkpoint of "
            f"`septet finetune {' or '.join(recipes.values())}`"
        )
    tokenizer = load_tokenizer(folder)
    network = getattr(modeling_septet, task.head).from_pretrained(folder, dtype=torch.float32).eval()
    check_tokenizer(tokenizer, network.config, folder)
    return task, network.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def downloaded(repo_id: str, revision: str | None) -> Path:
    """A repository's model and tokenizer in the Hub's cache.

    Raises:
        UserError: the name is invalid, or neither the cache nor the Hub has it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo_id, revision=revision, ignore_patterns=["evidence/*"]))
    except HFValidationError as error:
        raise UserError(f"{repo_id}: is neither a folder here nor a valid repository name (owner/name)") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{repo_id}: is no folder here and cannot be downloaded ({reason}); check the name") from error


@Language.factory(
    "septet_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type"],
    default_config={"revision": None, "batch_size": 32},
)
def make_ner(nlp: Language, name: str, model: str, revision: str | None, batch_size: int) -> EntityComponent:
    """A component from the configuration {"model": folder or owner/name, "revision": of a repository, "batch_size"}."""
    return EntityComponent(nlp, name, model, revision, batch_size)


@Language.factory("septet_classifier", assigns=["doc.cats"], default_config={"revision": None, "batch_size": 32})
def make_classifier(nlp: Language, name: str, model: str, revision: str | None, batch_size: int) -> ClassifierComponent:
    """A component from the same configuration as `septet_ner`'s."""
    return ClassifierComponent(nlp, name, model, revision, batch_size)
