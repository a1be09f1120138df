# Copyright 2026 The Septet authors.
# Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""Septet's configuration. Published beside every checkpoint, so it imports nothing but transformers and huggingface_hub."""

from typing import Literal

import transformers
from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

# Before 5.5 masks, strict configurations and output capture had other interfaces.
MINIMUM_TRANSFORMERS = (5, 5)
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < MINIMUM_TRANSFORMERS:
    raise ImportError(
        f"transformers {transformers.__version__} is installed; Septet's code needs 5.5 or newer: "
        'pip install --upgrade "transformers>=5.5"'
    )

# Every head loads from every checkpoint, whichever head saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_septet.SeptetConfig",
    "AutoModel": "modeling_septet.SeptetModel",
    "AutoModelForCausalLM": "modeling_septet.SeptetForCausalLM",
    "AutoModelForMaskedLM": "modeling_septet.SeptetForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_septet.SeptetForNextSentencePrediction",
    "AutoModelForPreTraining": "modeling_septet.SeptetForPreTraining",
    "AutoModelForSequenceClassification": "modeling_septet.SeptetForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_septet.SeptetForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_septet.SeptetForQuestionAnswering",
}


@strict
class SeptetConfig(PreTrainedConfig):
    r"""The shape of a Septet model; the defaults are the 7B.

    With these defaults the architecture is Qwen3's (per-head QK-norm); with `qk_norm=False` it is Llama's.

    Args:
        attention_mode: how `SeptetModel` and the language-model head read a sequence.
            `"causal"`: each position sees itself and what stands before it.
            `"prefix"`: as causal, but the first `prefix_lengths[i]` positions of row *i* see one another in both
            directions; `generate` passes the prompt's length by itself.
            `"bidirectional"`: every position sees every other of its document.
            The masked-LM and next-sentence heads always read in both directions, whatever this says.
        qk_norm: RMS-normalise queries and keys per head before the rotary embedding (Henry et al. 2020).
        hidden_dropout: dropout on each residual branch; 0 in large-scale pre-training.
        classifier_pooling: which hidden state the sequence head reads: the first token's, the mean over the tokens that
            `attention_mask` keeps, or the last such token's (the sensible choice for causal reading).
        trained_heads: the classes whose weights in this checkpoint come from training. Each of them loads complete;
            any other head loads with its own new tensors, and transformers names them.
        task_specific_params: what a task's decoder must know, by task, such as whether questions may be unanswerable.
    """

    model_type = "septet"
    keys_to_ignore_at_inference = ["past_key_values"]

    # Tensor- and pipeline-parallel plans: the module names are Llama's, and so are the plans.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 13312
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rope_parameters: RopeParameters | dict | None = None
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    attention_mode: Literal["causal", "prefix", "bidirectional"] = "causal"
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    classifier_pooling: Literal["first", "mean", "last"] = "mean"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    trained_heads: list[str] | None = None
    task_specific_params: dict | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Run by `@strict` at construction and before saving; each message has both numbers."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even one of at least 2")
        for name in ("pad_token_id", "bos_token_id", "sep_token_id", "mask_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(f"{name} is {token_id}; it must lie below vocab_size ({self.vocab_size})")


__all__ = ["SeptetConfig"]
