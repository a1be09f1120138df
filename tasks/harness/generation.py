"""Tasks of text in, text out: a prompt in the chat template, a prefix-LM that reads it in both directions, a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from septet.data.errors import UserError
from septet.tasks.harness.task import Example, Task, padded_batches, require_finite

# Fields of `Defaults` that generation_config.json carries and a report states.
DECODING = ("num_beams", "max_new_tokens", "length_penalty", "no_repeat_ngram_size")
MARKERS = ("<|source|>", "<|target|>")
_TEXT = "<<TEXT>>"  # stands for the text while a template is rendered


def chat_template(tokenizer: Any) -> str:
    """The template by which one user message renders to exactly the prompt of training, so that transformers'
    text-generation pipeline answers.

    It is Septet's, of two tokens of its tokenizers; for an imported tokenizer its own, which its model knows; and where there
    is none, one of the first two special tokens that have no other use.

    Raises:
        UserError: the tokenizer has nothing of it.
    """
    before, after = MARKERS
    if {None, tokenizer.unk_token_id} & {tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS}:
        if tokenizer.chat_template:
            return tokenizer.chat_template
        names = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
        used = {getattr(tokenizer, f"{name}_token") for name in names}
        added = sorted(tokenizer.added_tokens_decoder.items())
        spare = [str(token) for _, token in added if token.special and str(token) not in used]
        if len(spare) < 2:
            raise UserError(
                f"the tokenizer has no {' and '.join(MARKERS)}, no chat template, and of special tokens without a use only "
                f"{spare}: prompt and answer could not be told apart; take a base whose tokenizer has two of them"
            )
        before, after = spare[:2]
    return ("{{ bos_token }}" if tokenizer.bos_token else "") + before + "{{ messages[-1]['content'] }}" + after


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids before a prompt's text and behind it, by `chat_template`."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": _TEXT}],
        chat_template=chat_template(tokenizer),
        add_generation_prompt=True,
        tokenize=False,
    )
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in rendered.split(_TEXT))
    return before, after


def raise_if_nan(input_ids: Any, scores: Any) -> Any:
    """A processor of logits that passes them on (-inf forbids a token); raises a `UserError` if one is NaN."""
    require_finite(scores.clamp(min=-1e30))
    return scores


class GenerationTask(Task):
    """Prompt `<bos><|source|> text <|target|>` (see `chat_template`), answer `text <eos>`; the loss is on the answer alone.

    A source that does not fit is cut at its end, the report counts how often. `source_role` names the column.
    """

    head = "SeptetForCausalLM"
    attention_mode = "prefix"
    pipeline_tag = "text-generation"
    scored_while_training = False  # decoding takes longer than an epoch of a small set
    source_role: ClassVar[str] = ""

    def prompt_ids(
        self, text: str, tokenizer: Any, frame: tuple[list[int], list[int]], space: int
    ) -> tuple[list[int], bool]:
        """Token ids of the prompt, of at most `space` but for the frame (`frame_of`), and whether the text was cut for it."""
        before, after = frame
        room = max(8, space - len(before) - len(after))
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*before, *ids[:room], *after], len(ids) > room

    def source(self, example: Example) -> str:
        """The text to read."""
        return example.input[self.source_role]

    def target(self, example: Example) -> str:
        """The text to learn to write."""
        return example.reference

    def encode(self, examples: Sequence[Example], tokenizer: Any, config: Any) -> list[dict[str, Any]]:
        features, frame = [], frame_of(tokenizer)
        answer_room = config.max_position_embeddings // 2
        for example in examples:
            answer = tokenizer(self.target(example), add_special_tokens=False, split_special_tokens=True)["input_ids"]
            too_long = len(answer) >= answer_room
            answer = [*answer[: answer_room - 1], tokenizer.eos_token_id]
            space = config.max_position_embeddings - len(answer)
            prompt, cut = self.prompt_ids(self.source(example), tokenizer, frame, space)
            feature = {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
            if config.attention_mode != "causal":  # the prompt is read in both directions
                feature["prefix_lengths"] = len(prompt)
            features.append({**feature, "truncated": cut or too_long})
        return features

    def finish(self, model: Any, tokenizer: Any, settings: Any) -> None:
        """Chat template and generation settings; `settings` has the fields of `Defaults`, the recipe's for any it lacks."""
        from transformers import GenerationConfig

        tokenizer.chat_template = chat_template(tokenizer)
        tokenizer.padding_side = "left"  # a batch of prompts must end where the answers start
        chosen = {name: getattr(settings, name, getattr(self.defaults, name)) for name in DECODING}
        if chosen["num_beams"] == 1:
            del chosen["length_penalty"]  # of beams alone; transformers refuses to save it beside greedy decoding
        model.generation_config = GenerationConfig(
            do_sample=False,  # written out: the pipeline's own default samples, even with beams
            **chosen,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def predict(self, model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
        import torch
        from tqdm import tqdm
        from transformers import LogitsProcessorList

        new_tokens = model.generation_config.max_new_tokens or 64
        frame, space = frame_of(tokenizer), model.config.max_position_embeddings - new_tokens
        prompts = [self.prompt_ids(self.source(example), tokenizer, frame, space) for example in examples]
        rows: list[dict[str, Any]] = [{} for _ in examples]
        batches = list(padded_batches([len(ids) for ids, _ in prompts], batch_size))
        for indices in tqdm(batches, desc=f"predict {self.name}", unit=" batches", mininterval=1, delay=1):
            length = max(len(prompts[i][0]) for i in indices)
            padding = [[0] * (length - len(prompts[i][0])) for i in indices]
            input_ids = [
                [tokenizer.pad_token_id for _ in p] + prompts[i][0] for p, i in zip(padding, indices, strict=True)
            ]
            mask = [p + [1] * len(prompts[i][0]) for p, i in zip(padding, indices, strict=True)]
            with torch.no_grad():
                output = model.generate(
                    input_ids=torch.tensor(input_ids, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    logits_processor=LogitsProcessorList([raise_if_nan]),
                )
            for i, tokens in zip(indices, output[:, length:].tolist(), strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                ended = tokenizer.eos_token_id in tokens
                rows[i] = {"prediction": text, "truncated": prompts[i][1], "ended": ended}
        return rows

    def showcase(self, given: Mapping[str, Any]) -> Example:
        return Example("showcase", given.get("lang", "en"), {self.source_role: given["text"]}, "")
