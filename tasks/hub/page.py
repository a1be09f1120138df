"""A Gradio page to try up to five kinds of fine-tuned Septet models; needs torch, transformers and gradio, captum if it can.

`septet serve` shows it on this machine; a Space holds a copy of this file as `app.py` and says in `models.json` what to
load: a list of {"task", "model", "revision"}. What is typed or answered is text and never markup.
"""

import json
import os
import re
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
import transformers

MAX_CHARACTERS = 20_000
MAX_ANSWER_TOKENS = 30
INTEGRATION_STEPS = 24
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|\S")  # Chinese characters count as words
# The pipeline that answers, where one does, and what stands on the tab.
KINDS = {
    "classification": ("text-classification", "Classification"),
    "ner": (None, "Named entities"),
    "qa": (None, "Question answering"),
    "translation": ("text-generation", "Translation"),
    "summarization": ("text-generation", "Summarization"),
}
AUTO = {
    "classification": transformers.AutoModelForSequenceClassification,
    "ner": transformers.AutoModelForTokenClassification,
    "qa": transformers.AutoModelForQuestionAnswering,
    "translation": transformers.AutoModelForCausalLM,
    "summarization": transformers.AutoModelForCausalLM,
}


class Answerer:
    """A model and its tokenizer; what they say to a text."""

    def __init__(self, task, model, revision=None, trust_remote_code=False):
        where = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.task, self.name = task, str(model)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, **where)
        self.model = AUTO[task].from_pretrained(model, **where).eval()
        self.length = self.model.config.max_position_embeddings
        self.tokenizer.model_max_length = self.length
        if KINDS[task][0]:
            self.pipeline = transformers.pipeline(KINDS[task][0], model=self.model, tokenizer=self.tokenizer)

    def classify(self, text):
        """label -> probability."""
        found = self.pipeline(asked(text), top_k=None, truncation=True, max_length=self.length)
        return {row["label"]: row["score"] for row in found}

    def entities(self, text):
        """[(piece of the text, kind or None)] that make up the text, and [(entity, kind, probability)]. A word has the label
        of its first piece, from the window in which it stands farthest from an edge."""
        encoded, found = self.windows(asked(text)), {}
        starts = {match.start() for match in WORD.finditer(text)}
        for window, ids in enumerate(encoded["input_ids"]):
            with torch.no_grad():
                shares = self.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
            for place, (first, last) in enumerate(encoded["offset_mapping"][window]):
                margin = min(place, len(ids) - place)
                label, share = self.model.config.id2label[int(shares[place].argmax())], float(shares[place].max())
                for start in sorted(starts.intersection(range(first, last))):
                    if margin > found.get(start, (-1,))[0]:
                        found[start] = (margin, label, share)
                    label = label.replace("B-", "I-")  # a piece of several words begins one entity
        spans = []  # [start, end, kind, probabilities]
        for match in WORD.finditer(text):
            _, label, share = found.get(match.start(), (0, "O", 1.0))
            kind = label[2:]
            if label.startswith("I-") and spans and spans[-1][2] == kind and spans[-1][4] == "open":
                spans[-1][1] = match.end()
                spans[-1][3].append(share)
            elif label != "O":
                spans.append([match.start(), match.end(), kind, [share], "open"])
            elif spans:
                spans[-1][4] = "closed"
        pieces, rows, done = [], [], 0
        for start, end, kind, shares, _ in spans:
            pieces += [(text[done:start], None), (text[start:end], kind)]
            rows.append((text[start:end], kind, round(sum(shares) / len(shares), 3)))
            done = end
        return [piece for piece in [*pieces, (text[done:], None)] if piece[0]], rows

    def windows(self, *texts):
        """Token ids of what fits into the context at a time, overlapping; of two texts the second is cut."""
        return self.tokenizer(
            *texts,
            truncation="only_second" if len(texts) > 1 else True,
            max_length=self.length,
            stride=self.length // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def answer(self, question, context):
        """The best span: [(piece of the context, "answer" or None)], and its probability in its window."""
        encoded = self.windows(asked(question, self.length), asked(context))
        best = (-1.0, 0, 0)
        for window, ids in enumerate(encoded["input_ids"]):
            with torch.no_grad():
                output = self.model(input_ids=torch.tensor([ids]))
            inside = torch.tensor([part == 1 for part in encoded.sequence_ids(window)])
            if not inside.any():
                continue
            start, end = (
                logits[0].masked_fill(~inside, -torch.inf).softmax(-1)
                for logits in (output.start_logits, output.end_logits)
            )
            spans = (start[:, None] * end).triu().tril(MAX_ANSWER_TOKENS - 1)
            first, last = divmod(int(spans.argmax()), len(ids))
            offsets = encoded["offset_mapping"][window]
            best = max(best, (float(spans[first, last]), offsets[first][0], offsets[last][1]))
        score, start, end = best[0], *trimmed(context, *best[1:])
        pieces = [(context[:start], None), (context[start:end], "answer"), (context[end:], None)]
        return [piece for piece in pieces if piece[0]], max(score, 0.0)

    def write(self, text):
        """What the model writes to a source text."""
        written = self.pipeline([{"role": "user", "content": asked(text)}])[0]["generated_text"]
        return written[-1]["content"]

    def attributions(self, text, label=None, place=None):
        """[(piece of the text, share from -1 to 1 in the score of `label`)]: integrated gradients (Sundararajan et al. 2017)
        over the embeddings, from padding, as captum computes them; for entities, in the score at character `place`."""
        from captum.attr import LayerIntegratedGradients

        encoded = self.tokenizer(
            asked(text), truncation=True, max_length=self.length, return_offsets_mapping=True, return_tensors="pt"
        )
        offsets, ids = encoded["offset_mapping"][0].tolist(), encoded["input_ids"]
        token = 0
        if place is not None:
            token = next((i for i, (_, end) in enumerate(offsets) if end > place), None)
            if token is None:
                return []

        def score(input_ids):
            logits = self.model(input_ids=input_ids).logits
            return logits[:, token] if place is not None else logits

        names = self.model.config.label2id
        target = next((names[name] for name in (f"B-{label}", label) if name in names), 0)
        method = LayerIntegratedGradients(score, self.model.get_input_embeddings())
        baseline = torch.full_like(ids, self.tokenizer.pad_token_id)
        found = method.attribute(ids, baseline, target=target, n_steps=INTEGRATION_STEPS, internal_batch_size=8)
        shares = found.sum(-1)[0]
        words, done = [], 0  # pieces of one word, and of one character, together
        for (start, end), share in zip(offsets, shares.tolist(), strict=True):
            inside = re.fullmatch(r"[^\W_\u3400-\u9fff]{2}", text[start - 1 : start + 1])
            if words and start < end and (inside or end <= done):
                words[-1] = (words[-1][0] + text[max(start, done) : end], words[-1][1] + share)
            elif start < end:
                words.append((text[max(start, done) : end], share))
            done = max(done, end)
        largest = max((abs(share) for _, share in words), default=0.0) or 1.0
        return [(piece, round(share / largest, 3)) for piece, share in words]


def asked(text, limit=MAX_CHARACTERS):
    """The text, if there is one that can be read."""
    if not text or not text.strip():
        raise gr.Error("Please type a text first.", print_exception=False)
    if len(text) > limit:
        raise gr.Error(f"The text has {len(text):,} characters; at most {limit:,} are read.", print_exception=False)
    return text


def trimmed(text, start, end):
    """The same span without the spaces at its ends, which a word's first piece brings along."""
    piece = text[start:end]
    return end - len(piece.lstrip()), start + len(piece.rstrip())


def box(label, lines=5):
    return gr.Textbox(label=label, lines=lines, max_length=MAX_CHARACTERS)


def why(label):
    return gr.HighlightedText(label=label, show_legend=False)


def classification_tab(answerer):
    text, button = box("text"), gr.Button("Classify", variant="primary")
    label = gr.Label(label="confidence")
    reasons = why("what spoke for the first label (red) and against it (blue)")

    def run(given):
        found = answerer.classify(given)
        return found, explained(answerer, given, max(found, key=found.get))

    button.click(run, text, [label, reasons], api_name="classify")


def ner_tab(answerer):
    text, button = box("text"), gr.Button("Find entities", variant="primary")
    spans = gr.HighlightedText(label="entities; click one to see why", show_legend=True)
    table = gr.Dataframe(headers=["entity", "kind", "confidence"], label="confidence", interactive=False)
    reasons = why("what spoke for the entity that was clicked (red) and against it (blue)")

    def explain(given, event: gr.SelectData):
        pieces = answerer.entities(given)[0]
        index = event.index if isinstance(event.index, int) else event.index[0]
        if index >= len(pieces) or pieces[index][1] is None:
            return []
        return explained(answerer, given, pieces[index][1], sum(len(piece) for piece, _ in pieces[:index]))

    button.click(answerer.entities, text, [spans, table], api_name="entities")
    spans.select(explain, text, reasons, api_name=False)


def qa_tab(answerer):
    question, context = box("question", 1), box("context", 8)
    button = gr.Button("Answer", variant="primary")
    spans = gr.HighlightedText(label="the answer in its place")
    confidence = gr.Number(label="confidence", precision=3)
    button.click(answerer.answer, [question, context], [spans, confidence], api_name="answer")


def writing_tab(answerer):
    text, button = box("text", 8), gr.Button("Write", variant="primary")
    written = gr.Textbox(label="answer", lines=4, interactive=False)
    button.click(answerer.write, text, written, api_name=answerer.task)


TABS = {
    "classification": classification_tab,
    "ner": ner_tab,
    "qa": qa_tab,
    "translation": writing_tab,
    "summarization": writing_tab,
}


def explained(answerer, text, label, place=None):
    try:
        return answerer.attributions(text, label, place)
    except ImportError:
        return [("install captum to see this", None)]


def build(answerers):
    """The page, not yet shown."""
    with gr.Blocks(title="Septet", analytics_enabled=False) as page:
        for answerer in answerers:
            with gr.Tab(KINDS[answerer.task][1]):
                gr.Markdown("`" + answerer.name.replace("`", "'") + "`")
                TABS[answerer.task](answerer)
    return page


def launch(page, **options):
    """Shows it; nothing is fetched from elsewhere, and no model answers two at once."""
    fonts = ["system-ui", "Noto Sans CJK SC", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    page.queue(default_concurrency_limit=1)
    return page.launch(theme=theme, footer_links=[], **options)


if __name__ == "__main__":
    listed = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    launch(build([Answerer(**entry, trust_remote_code=True) for entry in listed]))
