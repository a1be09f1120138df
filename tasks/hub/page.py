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
# Of all events: what explains one answer changes what the model computes meanwhile.
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|\S")  # Chinese characters count as words
TITLES = {
    "classification": "Classification",
    "ner": "Named entities",
    "qa": "Question answering",
    "translation": "Translation",
    "summarization": "Summarization",
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

    def classify(self, text):
        """label -> probability."""
        encoded = self.tokenizer(asked(text), truncation=True, max_length=self.length, return_tensors="pt")
        with torch.no_grad():
            shares = self.model(**encoded).logits[0].softmax(-1)
        return {self.model.config.id2label[number]: float(share) for number, share in enumerate(shares)}

    def entities(self, text):
        """[(piece of the text, kind or None)] that make up the text, and [(entity, kind, probability)]. A word has the label
        of its first piece, from the window in which it stands farthest from an edge."""
        encoded, found = self.windows(asked(text)), {}
        starts = {match.start() for match in WORD.finditer(text)}
        for window, ids in enumerate(encoded["input_ids"]):
            with torch.no_grad():
                shares = self.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
            seen = set()  # a character may have several pieces: its first one speaks for it
            spans = encoded["offset_mapping"][window]
            begins = [trimmed(text, *span)[0] if span[0] < span[1] else None for span in spans]
            for place, first in enumerate(begins):
                if first is None:
                    continue
                following = next((other for other in begins[place + 1 :] if other is not None), spans[place][1])
                margin = min(place, len(ids) - place)
                label, share = self.model.config.id2label[int(shares[place].argmax())], float(shares[place].max())
                for start in sorted(starts.intersection(range(first, max(first + 1, following))) - seen):
                    seen.add(start)
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

    def windows(self, text, question=None):
        """Token ids of what fits into the context at a time, overlapping by half; a question, which may take half of the
        context and is cut there, stands before each."""
        options = {"return_overflowing_tokens": True, "return_offsets_mapping": True, "max_length": self.length}
        if question is None:
            return self.tokenizer(text, truncation=True, stride=min(self.length // 2, self.length - 2), **options)
        pieces = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        limit = self.length // 2 - 2
        asked_for = question if len(pieces) <= limit else question[: pieces[limit - 1][1]]
        stride = (self.length - min(limit, len(pieces)) - 2) // 2
        return self.tokenizer(asked_for, text, truncation="only_second", stride=stride, **options)

    def answer(self, question, context):
        """The best span: [(piece of the context, "answer" or None)], and its probability in its window."""
        encoded = self.windows(asked(context), asked(question))
        options = (getattr(self.model.config, "task_specific_params", None) or {}).get("qa", {})
        best, no_answer = (-torch.inf, 0, 0, 0.0), torch.inf
        for window, ids in enumerate(encoded["input_ids"]):
            with torch.no_grad():
                output = self.model(input_ids=torch.tensor([ids]))
            start, end = output.start_logits[0], output.end_logits[0]
            no_answer = min(no_answer, float(start[0] + end[0]))
            inside = torch.tensor([part == 1 for part in encoded.sequence_ids(window)])
            if not inside.any():
                continue
            allowed = (inside[:, None] & inside).triu().tril(MAX_ANSWER_TOKENS - 1)
            scores = (start[:, None] + end).masked_fill(~allowed, -torch.inf)
            first, last = divmod(int(scores.argmax()), len(ids))
            share = float(start.softmax(-1)[first] * end.softmax(-1)[last])
            offsets = encoded["offset_mapping"][window]
            best = max(best, (float(scores[first, last]), offsets[first][0], offsets[last][1], share))
        if options.get("unanswerable") and no_answer > best[0]:
            return [(context, None)], 0.0
        start, end = trimmed(context, *best[1:3])
        pieces = [(context[:start], None), (context[start:end], "answer"), (context[end:], None)]
        return [piece for piece in pieces if piece[0]], best[3]

    def write(self, text):
        """What the model writes to a source text, which is cut where it would leave no room for the answer. The prompt is
        that of training: what is spelled like a control token stays text."""
        asking = [{"role": "user", "content": "<<TEXT>>"}]
        rendered = self.tokenizer.apply_chat_template(asking, add_generation_prompt=True, tokenize=False)
        parts = rendered.split("<<TEXT>>")
        before, after = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
        ids = self.tokenizer(asked(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        answer = self.model.generation_config.max_new_tokens or 64
        room = max(8, self.length - answer - len(before) - len(after))
        if len(ids) > room:
            gr.Info(f"The text has {len(ids):,} tokens; the first {room:,} are read.")
        prompt = torch.tensor([[*before, *ids[:room], *after]])
        with torch.no_grad():
            output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt))
        return self.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()

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
    """The same span without the spaces at its ends, which a word's first piece brings along; one of spaces stays."""
    piece = text[start:end]
    return (end - len(piece.lstrip()), start + len(piece.rstrip())) if piece.strip() else (start, end)


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

    button.click(run, text, [label, reasons], api_name="classify", **ONE_AT_A_TIME)


def ner_tab(answerer):
    text, button = box("text"), gr.Button("Find entities", variant="primary")
    spans = gr.HighlightedText(label="entities; click one to see why", show_legend=True)
    table = gr.Dataframe(headers=["entity", "kind", "confidence"], label="confidence", interactive=False)
    reasons = why("what spoke for the entity that was clicked (red) and against it (blue)")

    def explain(pieces, event: gr.SelectData):
        index = event.index if isinstance(event.index, int) else event.index[0]
        if not pieces or index >= len(pieces) or pieces[index][1] is None:
            return []
        before = sum(len(piece) for piece, _ in pieces[:index])
        return explained(answerer, "".join(piece for piece, _ in pieces), pieces[index][1], before)

    button.click(answerer.entities, text, [spans, table], api_name="entities", **ONE_AT_A_TIME)
    spans.select(explain, spans, reasons, api_name=False, **ONE_AT_A_TIME)


def qa_tab(answerer):
    question, context = box("question", 1), box("context", 8)
    button = gr.Button("Answer", variant="primary")
    spans = gr.HighlightedText(label="the answer in its place")
    confidence = gr.Number(label="confidence", precision=3)
    button.click(answerer.answer, [question, context], [spans, confidence], api_name="answer", **ONE_AT_A_TIME)


def writing_tab(answerer):
    text, button = box("text", 8), gr.Button("Write", variant="primary")
    written = gr.Textbox(label="answer", lines=4, interactive=False)
    button.click(answerer.write, text, written, api_name=answerer.task, **ONE_AT_A_TIME)


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
            with gr.Tab(TITLES[answerer.task]):
                gr.Markdown("`" + answerer.name.replace("`", "'") + "`")
                TABS[answerer.task](answerer)
    return page


def launch(page, **options):
    """Shows it; nothing is fetched from elsewhere."""
    fonts = ["system-ui", "Noto Sans CJK SC", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    return page.launch(theme=theme, footer_links=[], **options)


if __name__ == "__main__":
    listed = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    launch(build([Answerer(**entry, trust_remote_code=True) for entry in listed]))
