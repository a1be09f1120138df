"""Write a checkpoint as GGUF, the file of llama.cpp: weights, shape and tokenizer in one (`septet export --to gguf`).

Septet without QK-norm is llama.cpp's `llama`, with it `qwen3`. The format: https://github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch

from septet.data.errors import UserError
from septet.data.manifest import Writing, read_json
from septet.data.tokenizer import DEEPSEEK_V3_SPLITS

FILE_NAME = "model.gguf"
# The regular expressions of llama.cpp's pre-tokenizers (src/llama-vocab.cpp) as `tokenizer.json` spells them, whether
# whole words skip the merges there, and the name that `tokenizer.ggml.pre` has for them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (DEEPSEEK_V3_SPLITS, False): "deepseek-v3",  # Septet's own
    ((r"\p{N}", _GPT2), False): "smollm",
    ((_GPT2,), False): "gpt-2",
    ((_WORDS + r"\p{N}{1,3}" + _REST,), True): "llama-bpe",
    ((_WORDS + r"\p{N}" + _REST,), False): "qwen2",
}


def write_gguf(config: Any, model_class: Any, source_config: Any, out: Writing) -> str:
    """Writes `model.gguf` and reads it back; returns the closing line.

    Matrices keep their stored type, norms become float32 as llama.cpp wants them; one tensor is in memory at a time.

    Raises:
        UserError: no tokenizer, one that llama.cpp does not have, damaged weights, or a file that reads back otherwise.
    """
    from septet.modeling.checkpoint import check_weights

    folder, kind = config.model, "qwen3" if source_config.qk_norm else "llama"
    stored = check_weights(folder, model_class, source_config)
    writer = gguf.GGUFWriter(out.path / FILE_NAME, kind)
    out.counts["tokenizer_pre"] = add_tokenizer(writer, folder, source_config)
    factors = add_shape(writer, source_config, folder)

    names = gguf_names(kind, source_config, stored)
    types = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16}
    types["BF16"] = gguf.GGMLQuantizationType.BF16
    matrix_type = stored["model.embed_tokens.weight"].dtype
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[matrix_type])  # gguf.LlamaFileType
    for name, target in names.items():
        shape, dtype = stored[name].shape, stored[name].dtype if len(stored[name].shape) > 1 else "F32"
        size = math.prod(shape) * (4 if dtype == "F32" else 2)
        writer.add_tensor_info(target, shape, numpy.dtype(numpy.float32), size, types[dtype])
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, data in laid_out(kind, source_config, stored, names):
        writer.write_tensor_data(data)
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()

    parameters = sum(math.prod(stored[name].shape) for name in names)
    out.counts.update(num_parameters=parameters, dtype=matrix_type, architecture=kind)
    out.counts.update(read_back(config, model_class, source_config, out.path, stored, names))
    return f"{parameters:,} parameters in {matrix_type} as {kind}; {out.counts['read_back']}"


def gguf_names(kind: str, source_config: Any, stored: dict[str, Any]) -> dict[str, str]:
    """Stored name -> name in the file; a tied output matrix and the other heads stay behind."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[kind]
    known = gguf.get_tensor_name_map(arch, source_config.num_hidden_layers)
    names = {}
    for name in stored:
        ours = name.startswith("model.") or (name == "lm_head.weight" and not source_config.tie_word_embeddings)
        target = known.get_name(name.removesuffix(".weight"))  # None for rotary frequencies, which old files hold
        if ours and target is not None:
            names[name] = f"{target}.weight"
    return names


def laid_out(kind: str, source_config: Any, stored: dict[str, Any], names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """(name in the file, bytes or float32 as numpy), one tensor after the other.

    llama.cpp's `llama` rotates neighbours (2i, 2i + 1) where Septet rotates halves (i, i + D/2), so the rows of each
    query and key head are interleaved; its `qwen3` rotates halves.
    """
    heads = {"q_proj": source_config.num_attention_heads, "k_proj": source_config.num_key_value_heads}
    for name, target in names.items():
        tensor = stored[name].read()
        projection = name.split(".")[-2]
        if kind == "llama" and projection in heads:
            halves = tensor.view(heads[projection], 2, -1, tensor.shape[1])  # (N, 2, D/2, H)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if tensor.ndim == 1 or tensor.dtype == torch.float32:
            yield target, tensor.float().numpy()
        else:
            yield target, tensor.view(torch.uint8).numpy()


def add_shape(writer: Any, config: Any, folder: Path) -> Any:
    """The hyperparameters; returns the divisors of the rotary frequencies (D/2,) for the llama3 scaling, or None."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from septet.modeling.modeling_septet import SeptetRotaryEmbedding

    writer.add_name(folder.resolve().name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        for name, fixed in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
            if rope.get(name) not in (None, fixed):
                raise UserError(
                    f"{folder}: its YaRN scaling has {name} = {rope[name]}; llama.cpp takes {fixed} for this architecture "
                    f"whatever a file says; pass --to {'qwen3' if config.qk_norm else 'llama'}"
                )
        factor = rope["factor"]
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        # llama.cpp multiplies by the paper's 0.1 ln(factor) + 1 itself.
        own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS["yarn"](config, None)[1] / own)
    elif rope["rope_type"] == "llama3":
        plain = SeptetRotaryEmbedding.compute_default_rope_parameters(config)[0]
        return (plain / ROPE_INIT_FUNCTIONS["llama3"](config, None)[0]).float().numpy()
    return None


# ---- the tokenizer ----------------------------------------------------------------------------------------------------


def add_tokenizer(writer: Any, folder: Path, config: Any) -> str:
    """Adds the byte-level BPE of `tokenizer.json`; returns llama.cpp's name of its pre-tokenizer.

    A Unicode normaliser (NFC, of Qwen's tokenizers) has no place in the format: llama.cpp takes text to be normalised.

    Raises:
        UserError: no tokenizer, or one that llama.cpp would split, frame or number otherwise.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder}: has no tokenizer.json; GGUF holds the tokenizer too; put it beside the weights")
    described, tokenizer = read_json(file), Tokenizer.from_file(str(file))
    pre = pre_tokenizer_name(file, described)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{file}: has {tokenizer.get_vocab_size():,} tokens; the model has {config.vocab_size:,} embeddings; "
            "give the tokenizer that it was trained with"
        )
    added = {token["id"]: token for token in described["added_tokens"]}
    tokens, types = [], []
    for token_id in range(config.vocab_size):
        token = tokenizer.id_to_token(token_id)
        kind = gguf.TokenType.UNUSED if token is None else gguf.TokenType.NORMAL
        if token_id in added:
            kind = gguf.TokenType.CONTROL if added[token_id]["special"] else gguf.TokenType.USER_DEFINED
        tokens.append(f"[PAD{token_id}]" if token is None else token)
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = described["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])

    bare, framed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    before, after = framed[: framed.index(bare[0])], framed[framed.index(bare[0]) + len(bare) :]
    if before not in ([], [config.bos_token_id]) or after not in ([], [ends[0]]) or len(ends) > 2:
        raise UserError(
            f"{file}: puts {before} before and {after} after a text, and the model ends at {ends}; llama.cpp can put "
            f"bos ({config.bos_token_id}) before and eos after, and end at two tokens; change the tokenizer's template"
        )
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    ids = {"bos": config.bos_token_id, "pad": config.pad_token_id}
    ids |= {"sep": config.sep_token_id, "mask": config.mask_token_id}
    for name, token_id in {**ids, **dict(zip(("eos", "eot"), ends, strict=False))}.items():
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    if template := chat_template(folder):
        writer.add_chat_template(template)
    return pre


def pre_tokenizer_name(file: Path, described: dict[str, Any]) -> str:
    """llama.cpp's name for the way a `tokenizer.json` splits text.

    Raises:
        UserError: it is no byte-level BPE, or llama.cpp has no such split.
    """
    model, steps = described["model"], described.get("pre_tokenizer") or {}
    normalizer = (described.get("normalizer") or {}).get("type")
    steps = steps.get("pretokenizers", [steps])
    plain = not (model.get("continuing_subword_prefix") or model.get("byte_fallback") or model.get("dropout"))
    if model["type"] != "BPE" or not plain or not steps or steps[-1].get("type") != "ByteLevel":
        raise UserError(f"{file}: is no byte-level BPE (its model is {model['type']}); only these can go into a GGUF")
    splits = [split_of(step) for step in steps]
    if normalizer in (None, "NFC") and not steps[-1].get("add_prefix_space"):
        key = tuple(split for split in splits if split), bool(model.get("ignore_merges"))
        if key in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[key]
    shown = json.dumps(described.get("pre_tokenizer"), ensure_ascii=False)
    raise UserError(
        f"{file}: llama.cpp has no pre-tokenizer like this one: {shown:.400} (normalizer {normalizer}, ignore_merges "
        f"{bool(model.get('ignore_merges'))}); known: {', '.join(PRE_TOKENIZERS.values())}; pass --to llama or qwen3"
    )


def split_of(step: dict[str, Any]) -> str:
    """The regular expression of one step of a pre-tokenizer; empty where it splits nothing."""
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", "(a plain string)")
    if step["type"] == "Digits" and step["individual_digits"]:
        return r"\p{N}"
    if step["type"] == "ByteLevel":
        return _GPT2 if step.get("use_regex", True) else ""
    return f"({step['type']})"


def chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer, from its own file or from the configuration."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    template = read_json(file).get("chat_template") if file.is_file() else None
    return template if isinstance(template, str) else None


# ---- reading it back --------------------------------------------------------------------------------------------------


def read_back(
    config: Any, model_class: Any, source_config: Any, path: Path, stored: dict[str, Any], names: dict[str, str]
) -> dict[str, Any]:
    """Compares the file with its source: the logits where transformers can read it, every tensor's bytes otherwise.

    transformers 5.23 reads neither rotary scaling nor, for Qwen3, a head dimension other than 128.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from septet.modeling.convert import agreement, load, logits_of

    kind = "qwen3" if source_config.qk_norm else "llama"
    if source_config.rope_parameters["rope_type"] == "default" and (kind == "llama" or source_config.head_dim == 128):
        logging.set_verbosity_error()
        expected = logits_of(load(model_class, config.model))
        model = AutoModelForCausalLM.from_pretrained(path, gguf_file=FILE_NAME, dtype=expected.dtype).eval()
        difference = agreement(config.model, logits_of(model), expected)
        line = f"read back by transformers, the logits differ by at most {difference:.2g}"
        return {"max_logit_difference": difference, "read_back": line}

    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path / FILE_NAME).tensors}
    for target, data in laid_out(kind, source_config, stored, names):
        if reader[target].data.tobytes() != data.tobytes():
            raise UserError(f"{path}: {target} reads back otherwise than it was written; check the disk")
    what = f"Qwen3's head dimension {source_config.head_dim}" if kind == "qwen3" else "rotary scaling"
    line = f"{len(names)} tensors read back equal (no logits: transformers' GGUF reader does not know {what})"
    return {"max_logit_difference": None, "read_back": line}
