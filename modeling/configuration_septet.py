# Copyright 2026 The Septet authors.
# Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""Septet's configuration. Published beside every checkpoint, so it imports nothing but transformers and huggingface_hub."""

from typing import Literal

import transformers

# Before 5.5 masks, strict configurations and output capture had other interfaces, and before 5.0 some names below are not
# there, so this stands above them.
MINIMUM_TRANSFORMERS = (5, 5)
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < MINIMUM_TRANSFORMERS:
    raise ImportError(
        f"transformers {transformers.__version__} is installed; Septet's code needs 5.5 or newer: "
        'pip install --upgrade "transformers>=5.5"'
    )

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402
from transformers.modeling_rope_utils import RopeParameters  # noqa: E402

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
        rope_parameters: the rotary embedding (Su et al. 2021): `{"rope_type": "default", "rope_theta": 10000.0}`, or with
            the parameters of "linear", "dynamic", "yarn" or "llama3" scaling, as transformers names them.
        use_sliding_window, sliding_window, max_window_layers, layer_types: as Qwen3's. With `use_sliding_window` the
            layers from `max_window_layers` on see the last `sliding_window` positions only; `layer_types` names each
            layer's kind, where given. A window bounds causal reading alone: what is read in both directions is read
            whole.
        classifier_pooling: which hidden state the sequence head reads: the first token's, the mean over the tokens that
            `attention_mask` keeps, or the last such token's (the sensible choice for causal reading).
        initializer_range: the standard deviation with which embeddings and heads start; the layers' matrices have it
            times sqrt(192 / hidden_size).
        exact_match_embedding: the question-answering head adds a learned vector to the embedding of each token that stands
            on both sides of the first separator, in the question and in the context, and another to those that do not
            (Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain Questions"). It needs `input_ids`.
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
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 0
    layer_types: list[str] | None = None
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
    exact_match_embedding: bool = False
    trained_heads: list[str] | None = None
    task_specific_params: dict | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            windows = self.use_sliding_window and self.attention_mode != "bidirectional"
            self.layer_types = [
                "sliding_attention" if windows and i >= self.max_window_layers else "full_attention"
                for i in range(self.num_hidden_layers)
            ]
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Run by `@strict` at construction and before saving; each message has the values and the rule."""
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads", self.num_attention_heads,
            f"must be a multiple of num_key_value_heads ({self.num_key_value_heads})",
        )  # fmt: skip
        require(
            self.head_dim >= 2 and self.head_dim % 2 == 0,
            "head_dim", self.head_dim,
            f"must be even and at least 2 for rotary embeddings (without head_dim it is hidden_size, {self.hidden_size}, "
            f"over num_attention_heads, {self.num_attention_heads})",
        )  # fmt: skip
        for name in ("attention_dropout", "hidden_dropout", "classifier_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must lie in [0, 1)")
        for name in ("initializer_range", "rms_norm_eps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        require(self.hidden_act in ACT2FN, "hidden_act", self.hidden_act, f"must be one of {', '.join(sorted(ACT2FN))}")
        require(
            not self.exact_match_embedding or self.sep_token_id is not None,
            "exact_match_embedding", True, "needs sep_token_id, which parts question and context",
        )  # fmt: skip
        known = {path.split(".")[1] for key, path in AUTO_MAP.items() if key != "AutoConfig"}
        for head in self.trained_heads or []:
            require(head in known, "trained_heads", head, f"each must be one of {', '.join(sorted(known))}")

    def validate_token_ids(self):
        """Every special token lies within the vocabulary."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "mask_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                require(
                    token_id is None or 0 <= token_id < self.vocab_size,
                    name, value, f"must lie between 0 and {self.vocab_size - 1} (vocab_size is {self.vocab_size})",
                )  # fmt: skip

    def validate_windows(self):
        """Sliding windows are sized, and each layer has a kind that the model knows."""
        window = self.sliding_window
        if self.use_sliding_window:
            require(window is not None and window >= 1, "sliding_window", window, "use_sliding_window needs at least 1")
        kinds = ["full_attention", *(["sliding_attention"] if self.use_sliding_window else [])]
        for kind in self.layer_types:
            require(kind in kinds, "layer_types", kind, f"with these settings each must be one of {', '.join(kinds)}")
        require(
            len(self.layer_types) >= self.num_hidden_layers,
            "layer_types", f"{len(self.layer_types)} entries", f"num_hidden_layers is {self.num_hidden_layers}",
        )  # fmt: skip

    def validate_rope_parameters(self):
        """The numbers of the rotary embedding and its scaling; transformers' own `validate_rope` checks the keys."""
        rope = self.rope_parameters
        kind = rope["rope_type"]
        kinds = ("default", "linear", "dynamic", "yarn", "llama3")
        require(kind in kinds, "rope_type", kind, f"must be one of {', '.join(kinds)}")
        theta = rope.get("rope_theta")
        require(isinstance(theta, (int, float)) and theta > 0, "rope_theta", theta, "must be a number above 0")
        partial = rope.get("partial_rotary_factor", 1.0)
        require(partial == 1.0, "partial_rotary_factor", partial, "Septet rotates all of a head; must be 1.0")
        if kind == "default":
            return
        factor = rope.get("factor")
        require(
            isinstance(factor, (int, float)) and factor >= 1, f"{kind} factor", factor, "must be a number from 1 up"
        )
        original = rope.get("original_max_position_embeddings")
        if kind == "llama3":
            require(original is not None, "original_max_position_embeddings", original, "llama3 scaling needs it")
            low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
            require(
                low is not None and high is not None and 0 < low < high,
                "low_freq_factor", low, f"must lie between 0 and high_freq_factor ({high})",
            )  # fmt: skip
        if kind == "yarn":
            slow, fast = rope.get("beta_slow") or 1, rope.get("beta_fast") or 32
            require(0 < slow < fast, "beta_slow", slow, f"must lie between 0 and beta_fast ({fast})")
        if original is not None:
            require(original >= 1, "original_max_position_embeddings", original, "must be at least 1")


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raises a ValueError that has the field, its value and the rule."""
    if not holds:
        raise ValueError(f"{name} is {value!r}; {rule}")


__all__ = ["SeptetConfig"]
