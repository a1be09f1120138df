# Copyright 2026 The Septet authors.
# Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""Septet's model: Qwen3's decoder (Llama's without QK-norm), read causally, in both directions, or as a prefix-LM.

What differs from Qwen3, part by part, stands above each class. Published beside every checkpoint: it imports torch,
transformers and the configuration beside it, nothing else.

Shapes: B batch, T positions (queries), S positions (keys and values, cache included), H hidden size, N attention heads,
K key/value heads, D head_dim, V vocabulary, M selected positions.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_septet import SeptetConfig

IGNORE_INDEX = -100
REFERENCE_WIDTH = 192  # the preset `nano`'s: where `initializer_range` and learning rates are taken as they are
logger = logging.get_logger(__name__)


class SeptetRMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019) by torch's own function, which computes in float32 and, for
    bfloat16, rounds once, after the weight (Qwen3's rounds before and after)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Under autocast the weight may be wider than the states; cast, so that the fused kernel takes both.
        return functional.rms_norm(hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.eps)


def is_plain(linear: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Whether a module is a bare `nn.Linear` whose weight may be used directly: not adapted, quantised, sharded,
    offloaded or hooked."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.weight.device == hidden_states.device
        and linear.bias is None
        and not (linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__)
    )


def project(linear: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """`linear(hidden_states)`, faster where a CPU decodes: without gradients, in float32, a plain linear and few rows.

    With one row the product is bound by how fast the weights are read, and a matrix-vector product in MKL reads them at
    half the speed of a batch of eight (10 against 20 GB/s on an AMD EPYC); with up to eight rows it is up to 3 times as
    fast to multiply the weights by the transposed rows. `benchmarks/model_speed.py` measures what that brings.
    """
    if torch.is_grad_enabled() or not hidden_states.is_cpu or torch.compiler.is_exporting():
        return linear(hidden_states)
    rows, width = hidden_states.numel() // hidden_states.shape[-1], hidden_states.shape[-1]
    if rows > 8 or (rows > 2 and width >= 1024) or not is_plain(linear, hidden_states):
        return linear(hidden_states)
    weight = linear.weight
    if not weight.dtype == hidden_states.dtype == torch.float32:
        return linear(hidden_states)
    columns = hidden_states.reshape(rows, width).t()
    if rows == 1 and linear.out_features % 8 == 0:
        output = torch.bmm(weight.view(8, -1, width), columns.expand(8, width, 1))
    else:
        output = torch.mm(weight, columns).t()
    return output.reshape(*hidden_states.shape[:-1], linear.out_features)


class SeptetRotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021) with transformers' scaling rules (linear, dynamic, YaRN, llama3)."""

    def __init__(self, config: SeptetConfig):
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: SeptetConfig, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies `theta^(-2i/D)`, (D/2,), and the scaling of cos and sin (1: unused here)."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of each position's angles, both (B, T, 1, D); sin with the sign that `apply_rotary_pos_emb` needs."""
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None, None].float() * inv_freq  # (B, T, 1, D/2)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def apply_rotary_pos_emb(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates queries or keys (B, T, N, D) by their positions' angles.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) over the two halves of the last dimension, as Llama's `rotate_half`
    does; the halves are swapped by one roll, since `sin` carries the sign.
    """
    return states * cos + states.roll(states.shape[-1] // 2, dims=-1) * sin  # (addcmul rounds otherwise than Llama)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, N, T, D)
    key: torch.Tensor,  # (B, K, S, D)
    value: torch.Tensor,  # (B, K, S, D)
    attention_mask: torch.Tensor | None,  # (B, 1, T, S), added to the scores
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(Q K^T / sqrt(D) + mask) V (Vaswani et al. 2017); returns (B, T, N, D) and the weights (B, N, T, S)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SeptetAttention(nn.Module):
    """Grouped-query attention. Qwen3's, but QK-norm can be off and the direction of reading comes with the call."""

    def __init__(self, config: SeptetConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True  # set by `SeptetModel`, and overridden by a call's own direction
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = SeptetRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = SeptetRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        is_causal: bool | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        is_causal = self.is_causal if is_causal is None else is_causal
        batch_and_length = hidden_states.shape[:-1]
        query = self.q_norm(self.in_heads(project(self.q_proj, hidden_states)))  # (B, T, N, D)
        key = self.k_norm(self.in_heads(project(self.k_proj, hidden_states)))  # (B, T, K, D)
        value = self.in_heads(project(self.v_proj, hidden_states)).transpose(1, 2)  # (B, K, T, D)
        query = apply_rotary_pos_emb(query, *position_embeddings).transpose(1, 2)  # (B, N, T, D)
        key = apply_rotary_pos_emb(key, *position_embeddings).transpose(1, 2)  # (B, K, T, D)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, K, S, D)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window if is_causal else None,
            is_causal=is_causal,
            **kwargs,
        )
        return project(self.o_proj, output.reshape(*batch_and_length, query.shape[1] * self.head_dim)), weights

    def in_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, N * D) -> (B, T, N, D); under tensor parallelism N is this process's share."""
        return states.view(*states.shape[:-1], states.shape[-1] // self.head_dim, self.head_dim)


class SeptetMLP(nn.Module):
    """Gated feed-forward, SwiGLU by default (Shazeer 2020): down(act(gate(x)) * up(x))."""

    def __init__(self, config: SeptetConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = project(self.gate_proj, hidden_states), project(self.up_proj, hidden_states)
        return project(self.down_proj, self.act_fn(gate) * up)


class SeptetDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block. Qwen3's, with dropout on the two residual branches."""

    def __init__(self, config: SeptetConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SeptetAttention(config, layer_idx)
        self.mlp = SeptetMLP(config)
        self.input_layernorm = SeptetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SeptetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

        std = config.initializer_range * (REFERENCE_WIDTH / config.hidden_size) ** 0.5
        for projection in (module for module in self.modules() if isinstance(module, nn.Linear)):
            projection.init_std = std  # for _init_weights
        for projection in (self.self_attn.o_proj, self.mlp.down_proj):
            projection.init_std = std * (2 * config.num_hidden_layers) ** -0.5

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings, attention_mask, past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))  # (B, T, H)


class SeptetPreTrainedModel(PreTrainedModel):
    config: SeptetConfig
    config_class = SeptetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SeptetDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SeptetDecoderLayer, "attentions": SeptetAttention}
    # Heads that another head's checkpoint brings along and this one does not have.
    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|nsp_head|classifier|token_classifier|qa_outputs)\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal with std `initializer_range`; norms 1, biases 0 (transformers' rule), and these exceptions:

        - the layers' matrices get std * sqrt(192 / H), so that a layer does the same at every width (the spectral
          condition, Yang, Simon & Bernstein 2023), and those that write into the residual stream moreover
          / sqrt(2 layers) (Radford et al. 2019, GPT-2);
        - the output embedding gets at most 0.4 / sqrt(H): the final norm makes each hidden state of length sqrt(H), so
          logits then start with std 0.4 at most and the first loss is ln(V) + 0.4^2 / 2;
        - the vectors of exact matches start at 0, as if there were none;
        - the next-sentence head gets at most 0.1 / sqrt(H): all pairs begin with the same token, hence with one guess,
          and a strong one would start far from ln(2).
        """
        super()._init_weights(module)
        std = getattr(module, "init_std", self.config.initializer_range)
        if std != self.config.initializer_range:  # else it has just been drawn
            init.normal_(module.weight, std=std)
        elif module is getattr(self, "match_embeddings", None):
            init.zeros_(module.weight)
        elif module is self.get_output_embeddings() or (
            isinstance(module, nn.Embedding) and self.config.tie_word_embeddings
        ):
            output_std = min(self.config.initializer_range, 0.4 * self.config.hidden_size**-0.5)
            init.normal_(module.weight, std=output_std)
        elif module is getattr(self, "nsp_head", None):
            init.normal_(module.weight, std=min(self.config.initializer_range, 0.1 * self.config.hidden_size**-0.5))


def document_ids_of(position_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Numbers the documents of packed rows: (B, T) positions that restart -> (B, T) document indices from 0.

    Args:
        position_ids: (B, T), or (1, T) for all rows.
        attention_mask: (B, S) of the cache's positions and these; padding, wherever it stands, begins no document. A
            document begins where a position follows the one before it neither in number nor by as much as in place, so
            that padding inside a row may be counted or not.
    """
    if attention_mask is None:
        return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)
    length = position_ids.shape[1]
    kept = attention_mask[:, -length:] != 0
    position_ids = position_ids.expand_as(kept)
    places = torch.arange(length, device=kept.device).expand_as(kept)
    before = torch.where(kept, places, -1).cummax(dim=-1).values.roll(1, dims=-1)  # the last one kept before each place
    before[:, 0] = -1
    advance = position_ids - position_ids.gather(1, before.clamp(min=0))
    goes_on = (before < 0) | (advance == 1) | (advance == places - before)
    return (kept & ~goes_on).cumsum(dim=-1)


def positions_of(cu_seq_lens: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """(B, T) positions from the bounds of the documents of the flattened batch, as FlashAttention takes them."""
    flat = torch.arange(batch * length, device=cu_seq_lens.device)
    document = torch.bucketize(flat, cu_seq_lens[1:].to(flat.dtype), right=True).clamp(max=len(cu_seq_lens) - 1)
    return (flat - cu_seq_lens[document]).view(batch, length)


class SeptetModel(SeptetPreTrainedModel):
    """The decoder without a head. Qwen3's, with masks for three ways of reading and exact document boundaries.

    A head that reads in one direction whatever the configuration says gives it as `attention_mode`.
    """

    # vLLM drops what this list of the base class names, so the heads that it serves are not in it.
    _keys_to_ignore_on_load_unexpected = [r"^(nsp_head|token_classifier|qa_outputs|match_embeddings)\."]

    def __init__(self, config: SeptetConfig, attention_mode: str | None = None):
        super().__init__(config)
        self.attention_mode = attention_mode or config.attention_mode
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([SeptetDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        config.validate_windows()  # the fields may have been changed since the configuration was made
        for layer in self.layers:
            layer.self_attn.is_causal = self.attention_mode != "bidirectional"
        self.norm = SeptetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = SeptetRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        prefix_lengths: torch.LongTensor | None = None,
        attention_mode: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        r"""Hidden states of a batch of sequences.

        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`, (B, T, H).
            attention_mask: (B, S) ones where there is a token and zeros where there is padding, or a prepared 4D mask.
                A row of padding alone comes out finite and means nothing.
            position_ids: (B, T) or (1, T). Positions that restart within a row mark packed documents (so do
                FlashAttention's `cu_seq_lens_q`); no document sees another, whatever the attention implementation, and
                padding within them stays hidden as well. Packed rows make no cache: nothing could continue it.
            prefix_lengths: (B,) how many leading positions of each row, padding included, see one another in both
                directions. Only with `attention_mode` "causal" or "prefix".
            attention_mode: overrides the model's own for this call.

        Positions beyond `config.max_position_embeddings` are computed, with a warning: unless `rope_parameters` scales
        them, the model was not trained there.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, an empty batch or sequence, ids outside the
                vocabulary (on a CPU; an accelerator would have to stop and look), a mask or positions of another shape,
                `prefix_lengths` in bidirectional mode, or packed documents that continue a cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = embed(self.embed_tokens, input_ids)
        attention_mode = attention_mode or self.attention_mode
        causal = attention_mode != "bidirectional"
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        check_shapes(
            self.config,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            seen,
            prefix_lengths,
            attention_mode,
        )
        batch, length = inputs_embeds.shape[:2]

        documents = None
        bounds = kwargs.get("cu_seq_lens_q")
        if kwargs.get("cache") is not None or isinstance(attention_mask, dict):
            pass  # continuous batching, and `generate` with a static cache, keep documents apart themselves
        elif bounds is not None:
            restarting = positions_of(bounds, batch, length)
            documents = document_ids_of(restarting)
            position_ids = restarting if position_ids is None else position_ids
        elif position_ids is not None and length > 1:
            padding = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
            documents = document_ids_of(position_ids, padding).expand(batch, -1)  # positions may be given once for all
            # One document a row needs no mask. A compiled graph cannot look, and masks always.
            if not torch.compiler.is_compiling() and not bool((documents[:, -1] > 0).any()):
                documents = None
        packed = documents is not None and not torch.compiler.is_compiling()
        if packed and seen > 0:
            raise ValueError(
                f"position_ids restart, as of packed documents, but the cache holds {int(seen)} positions already; "
                "packed documents are read at once: pass them without past_key_values"
            )
        if use_cache and past_key_values is None and causal and not packed:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None] + seen

        if not isinstance(attention_mask, dict):
            if documents is not None and "flash" in self.config._attn_implementation:
                kwargs.update(flash_documents(documents, attention_mask))
                attention_mask = documents = None
            attention_mask = septet_mask(
                self.config, inputs_embeds, attention_mask, past_key_values, causal, documents, prefix_lengths
            )

        kwargs.setdefault("is_causal", causal)  # continuous batching brings its own
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        layers = self.layers[: self.config.num_hidden_layers]
        for layer, layer_type in zip(layers, self.config.layer_types, strict=False):
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask[layer_type if causal else "full_attention"],
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


def embed(embed_tokens: nn.Embedding, input_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, H); an id outside the vocabulary is named."""
    if torch.compiler.is_compiling():
        return embed_tokens(input_ids)
    try:
        return embed_tokens(input_ids)
    except IndexError as error:
        low, high = input_ids.aminmax()
        raise ValueError(
            f"input_ids run from {low} to {high}; they must lie between 0 and {embed_tokens.num_embeddings - 1}, the "
            "vocabulary; was the text encoded by another tokenizer?"
        ) from error


def check_shapes(
    config, inputs_embeds, attention_mask, position_ids, past_key_values, seen, prefix_lengths, attention_mode
) -> None:
    """Raises a ValueError where shapes do not fit, and warns beyond the rotary range."""
    batch, length = inputs_embeds.shape[:2]
    if batch == 0 or length == 0:
        raise ValueError(f"the input is empty ({batch} rows of length {length}); give at least one row of one token")
    if attention_mode not in ("causal", "prefix", "bidirectional"):
        raise ValueError(f'attention_mode is {attention_mode!r}; must be "causal", "prefix" or "bidirectional"')
    if prefix_lengths is not None:
        if attention_mode == "bidirectional":
            raise ValueError("prefix_lengths mean nothing in bidirectional reading; leave them out or read causally")
        if tuple(prefix_lengths.shape) != (batch,):
            raise ValueError(f"prefix_lengths have shape {tuple(prefix_lengths.shape)}; the input needs ({batch},)")
    if position_ids is not None:
        shape = tuple(position_ids.shape)
        if len(shape) != 2 or shape[0] not in (1, batch) or shape[1] != length:
            raise ValueError(f"position_ids have shape {shape}; the input needs ({batch}, {length})")
    is_tensor = isinstance(attention_mask, torch.Tensor)
    if is_tensor and attention_mask.dim() not in (2, 4):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; must have 2 or 4 dimensions")
    if torch.compiler.is_compiling() or getattr(past_key_values, "is_compileable", False):
        return  # static caches and graphs: lengths are tensors or symbols there
    if is_tensor and attention_mask.dim() == 2 and attention_mask.shape != (batch, seen + length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; the input needs ({batch}, {seen + length}): "
            f"{length} positions" + (f" after {seen} in the cache" if seen else "")
        )
    if seen + length > config.max_position_embeddings and config.rope_parameters["rope_type"] == "default":
        logger.warning_once(
            f"position {seen + length - 1} lies beyond max_position_embeddings ({config.max_position_embeddings}): the "
            "model was not trained there; shorten the input, or scale the positions by rope_parameters"
        )


def flash_documents(documents: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, torch.Tensor | int]:
    """FlashAttention's description of packed rows: (B, T) document indices -> where each document of the flattened
    batch begins. Left to itself FlashAttention looks at `position_ids` for a batch of one row alone, and not at all
    beside a padding mask. Padding becomes documents of its own, which nothing else sees."""
    changes = documents.diff(dim=-1, prepend=documents[:, :1] - 1) != 0
    if attention_mask is not None:
        padding = attention_mask.to(torch.int8)
        changes |= padding.diff(dim=-1, prepend=padding[:, :1]) != 0
    starts = changes.flatten().nonzero().flatten()
    bounds = torch.cat((starts, starts.new_tensor([changes.numel()]))).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def septet_mask(
    config: SeptetConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    causal: bool,
    documents: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """The mask of each kind of layer for the configured attention implementation; None where it needs none.

    Args:
        documents: (B, T) index of each position's document; positions of different documents do not see each other.
        prefix_lengths: (B,) leading positions that see one another in both directions.

    Raises:
        ValueError: a prefix that the attention implementation cannot express.
    """
    if prefix_lengths is not None and any(name in config._attn_implementation for name in ("flash", "paged")):
        raise ValueError(
            f"{config._attn_implementation} cannot read a prefix in both directions; load the model with "
            'attn_implementation="sdpa", or with attention_mode="causal"'
        )
    common = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    if documents is not None and past_key_values is None:

        def same_document(batch_idx, head_idx, q_idx, kv_idx):
            return documents[batch_idx, q_idx] == documents[batch_idx, kv_idx]

        common["and_mask_function"] = same_document
    elif documents is not None:
        # The documents are those of the new positions. What the cache holds already is seen, and a static cache has
        # more columns than there are positions; causality hides those.
        seen, last = past_key_values.get_seq_length(), documents.shape[1] - 1

        def same_new_document(batch_idx, head_idx, q_idx, kv_idx):
            query, key = (q_idx - seen).clamp(0, last), (kv_idx - seen).clamp(0, last)
            return (kv_idx < seen) | (documents[batch_idx, query] == documents[batch_idx, key])

        common["and_mask_function"] = same_new_document
    if causal and prefix_lengths is not None:

        def within_prefix(batch_idx, head_idx, q_idx, kv_idx):
            return (q_idx < prefix_lengths[batch_idx]) & (kv_idx < prefix_lengths[batch_idx])

        common["or_mask_function"] = within_prefix
    if not causal:
        return {"full_attention": create_bidirectional_mask(**common)}
    masks = {}
    if "full_attention" in config.layer_types:
        masks["full_attention"] = create_causal_mask(**common)
    if "sliding_attention" in config.layer_types:
        masks["sliding_attention"] = create_sliding_window_causal_mask(**common)
    return masks


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden_states @ weight.T` that holds the logits of one chunk of positions at a time.

    The gradients are computed in the forward pass, chunk by chunk, while the chunk's logits are at hand: they are
    linear in the incoming gradient of a scalar loss, so the backward pass only scales them. The idea is that of Liger
    Kernel (Hsu et al. 2024) and Cut Cross-Entropy (Wijmans et al. 2024), written here in plain torch.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, labels, keep, label_smoothing, z_loss_weight, chunk_size):
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_states) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        loss = hidden_states.new_zeros((), dtype=torch.float32)
        count, vocab_size = hidden_states.shape[0], weight.shape[0]
        # One buffer for all chunks: new memory would be filled with zeros by the kernel first, as often as there are
        # chunks, and that costs a product of this size a sixth of its speed on a CPU.
        buffer = hidden_states.new_empty((min(chunk_size, count), vocab_size))
        for start in range(0, count, chunk_size):
            chunk = slice(start, start + chunk_size)
            states, targets = hidden_states[chunk], labels[chunk][:, None]
            logits = torch.mm(states, weight.T, out=buffer[: len(states)]).float()  # (chunk, V)
            label_logits = (1 - label_smoothing) * logits.gather(1, targets)
            if label_smoothing:
                label_logits += label_smoothing * logits.mean(dim=-1, keepdim=True)
            largest = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()  # softmax times `total`, in the logits' memory
            total = exponentials.sum(dim=-1, keepdim=True)
            log_z = total.log() + largest
            losses = log_z - label_logits + z_loss_weight * log_z.square()
            loss += losses.sum() if keep is None else (losses * keep[chunk]).sum()
            if need_hidden or need_weight:
                # The gradient of the logits is `scale` times what stands in their memory after the next lines. In
                # float32 that row factor is applied to the H numbers of the row, not to the V; narrower types would
                # lose digits, or overflow, in between.
                scale = (1 + 2 * z_loss_weight * log_z) / total
                exponentials.scatter_add_(1, targets, (label_smoothing - 1) / scale)
                if label_smoothing:
                    exponentials -= label_smoothing / vocab_size / scale
                if keep is not None:
                    scale = scale * keep[chunk]
                if weight.dtype != torch.float32:
                    exponentials, scale = exponentials.mul_(scale).to(weight.dtype), 1
                if need_hidden:
                    torch.mm(exponentials, weight, out=grad_hidden[chunk]).mul_(scale)
                if need_weight:
                    if grad_weight.dtype == weight.dtype:
                        grad_weight.addmm_(exponentials.T, states * scale)
                    else:
                        grad_weight += exponentials.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def chunked_linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Sum over the labelled positions of the cross-entropy between `hidden_states @ weight.T` and `labels`.

    Args:
        hidden_states: (..., H); weight: (V, H); labels: (...), -100 where there is no target.
        z_loss_weight: adds `z_loss_weight * log(Z)^2` per position (Chowdhery et al. 2022, PaLM).
        chunk_size: positions whose logits are held at once.

    Returns:
        A float32 scalar. Divide it by the number of targets for a mean.
    """
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):  # the function's own products would not see autocast
        dtype = torch.get_autocast_dtype(device)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    keep = labels != IGNORE_INDEX
    if torch.compiler.is_compiling():  # a graph cannot drop rows whose number it does not know
        hidden_states, weights = hidden_states.flatten(0, -2), keep.flatten()[:, None].float()
        labels = labels.flatten().clamp(min=0)
    else:
        hidden_states, weights, labels = hidden_states[keep], None, labels[keep]
    return _ChunkedLinearCrossEntropy.apply(
        hidden_states, weight, labels, weights, label_smoothing, z_loss_weight, chunk_size
    )


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0, z_loss_weight: float = 0.0
) -> torch.Tensor:
    """What `chunked_linear_cross_entropy` computes, from logits (..., V) that are there already."""
    keep = labels != IGNORE_INDEX
    logits = logits.float()
    loss = functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss + z_loss_weight * logits.logsumexp(dim=-1)[keep].square().sum() if z_loss_weight else loss


def language_model_loss(
    head: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    skip_logits: bool,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean cross-entropy over the targets, or the sum over `num_items_in_batch` (Trainer's gradient accumulation), and
    the logits (B, T, V), or None if they are to be skipped. Without any target the loss is 0.

    Raises:
        ValueError: labels of another shape than the positions', or (on a CPU) outside the vocabulary.
    """
    labels = labels.to(hidden_states.device)
    check_labels("labels", labels, hidden_states.shape[:2], head.weight.shape[0])
    logits = None
    if skip_logits and is_plain(head, hidden_states):
        total = chunked_linear_cross_entropy(hidden_states, head.weight, labels, label_smoothing, z_loss_weight)
    else:  # a head that is anything else must be called as the module that it is
        logits = head(hidden_states)
        total = cross_entropy(logits, labels, label_smoothing, z_loss_weight)
    return mean_over_targets(total, labels, num_items_in_batch), None if skip_logits else logits


def mean_over_targets(
    total: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """A summed loss over the number of targets, this batch's or the one that Trainer counts over the micro-batches; 0
    where there is none."""
    targets = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    if isinstance(targets, torch.Tensor):
        return total / targets.to(total.device).clamp(min=1)
    return total / max(targets, 1)


def check_labels(name: str, labels: torch.Tensor, shape: tuple[int, ...], num_classes: int | None = None) -> None:
    """Raises a ValueError for labels of another shape, or (on a CPU) of classes that do not exist."""
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"{name} have shape {tuple(labels.shape)}; the input needs {tuple(shape)}")
    if num_classes is None or labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    low, high = labels.masked_fill(labels == IGNORE_INDEX, 0).aminmax()
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} run from {low} to {high}; they must lie between 0 and {num_classes - 1}, or be -100")


def classification_loss(
    name: str, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of logits (..., classes) and labels (...), once those are checked; `name` is for the error."""
    labels = labels.to(logits.device)
    check_labels(name, labels, logits.shape[:-1], logits.shape[-1])
    return mean_over_targets(cross_entropy(logits, labels), labels, num_items_in_batch)


class SeptetForCausalLM(SeptetPreTrainedModel, GenerationMixin):
    """Next-token prediction and generation, causal or prefix-LM by `config.attention_mode`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config, attention_mode="causal")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        prefix_lengths: torch.LongTensor | None = None,
        skip_logits: bool = False,
        shift_labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        r"""Logits, and the loss if there are labels.

        Args:
            labels: (B, T); position *t*'s logits are compared with `labels[:, t + 1]`; -100 is ignored.
            shift_labels: (B, T) instead of `labels`: position *t*'s own target, for sequences split between processes.
            logits_to_keep: project only the last so many positions (0: all), these positions, (B, T') these of each row,
                or where a (B, T) boolean mask says so. The loss is over all of them all the same.
            prefix_lengths: (B,) see `SeptetModel.forward`.
            skip_logits: with labels, return the loss alone and never hold all logits (the fast way to train).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            prefix_lengths=prefix_lengths,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = None
        if labels is not None or shift_labels is not None:
            if shift_labels is None:
                check_labels("labels", labels, hidden_states.shape[:2])
                shift_labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
            loss, logits = language_model_loss(self.lm_head, hidden_states, shift_labels, skip_logits, **kwargs)
            if logits is not None:
                logits = keep_positions(logits, logits_to_keep)
        else:
            logits = project(self.lm_head, keep_positions(hidden_states, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """transformers' `generate`; a prefix-LM reads the whole prompt in both directions unless told otherwise."""
        prompt = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        cache = kwargs.get("past_key_values")
        new = cache is None or cache.get_seq_length() == 0  # or else the prefix lies in the cache
        if self.config.attention_mode == "prefix" and prompt is not None and new:
            whole = torch.full((prompt.shape[0],), prompt.shape[1], device=prompt.device)
            kwargs["prefix_lengths"] = whole if kwargs.get("prefix_lengths") is None else kwargs["prefix_lengths"]
        settings = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("prefix_lengths") is not None and kwargs.get("prefill_chunk_size", settings.prefill_chunk_size):
            raise ValueError("prefill_chunk_size splits a prompt that a prefix-LM must read at once; leave it out")
        return super().generate(inputs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """transformers' continuous batching (`generate_batch` begins here too); paged attention reads causally."""
        if self.config.attention_mode == "prefix":
            raise ValueError(
                "continuous batching cannot read a prefix in both directions; use generate, or load the model with "
                'attention_mode="causal"'
            )
        return super().init_continuous_batching(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, inputs_embeds=None, is_first_iteration=False, **kwargs
    ):
        if past_key_values is not None and not is_first_iteration:
            kwargs.pop("prefix_lengths", None)  # the prompt lies in the cache, read in both directions already
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        prefix_lengths = kwargs.get("prefix_lengths")
        if prefix_lengths is not None and isinstance(inputs.get("attention_mask"), dict):
            # The masks of a static cache are prepared without the prefix; the shapes and the type are all it takes.
            shape = input_ids.shape if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"].shape[:2]
            like = torch.empty((*shape, 0), dtype=self.dtype, device=prefix_lengths.device)
            inputs["attention_mask"] = septet_mask(
                self.config, like, kwargs.get("attention_mask"), past_key_values, True, prefix_lengths=prefix_lengths
            )
        return inputs

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, **kwargs):
        """The masks that `generate` prepares ahead for static caches, by kind of layer."""
        return septet_mask(config, inputs_embeds, attention_mask, past_key_values, True)


def keep_positions(states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """(B, T, ...) -> the positions that `SeptetForCausalLM.forward` is to keep."""
    if isinstance(logits_to_keep, int):
        return states[:, -logits_to_keep:] if logits_to_keep else states
    if logits_to_keep.dim() == 1:
        return states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return states[logits_to_keep]
    return torch.take_along_dim(states, logits_to_keep[..., None], dim=1)


class SeptetForMaskedLM(SeptetPreTrainedModel):
    """Masked-token prediction. Reads in both directions; shares `lm_head` with the causal head, so one checkpoint
    serves both."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config, attention_mode="bidirectional")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        r"""labels: (B, T) the token to be found at each masked position, -100 elsewhere."""
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        hidden_states = outputs.last_hidden_state
        loss = None
        if labels is not None:
            loss, logits = language_model_loss(self.lm_head, hidden_states, labels, skip_logits, **kwargs)
        else:
            logits = self.lm_head(hidden_states)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def first_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, T, H) -> (B, H): each row's first position that is not padding."""
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_states[:, 0]
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
    return hidden_states[rows, attention_mask.long().argmax(-1).to(hidden_states.device)]


class SeptetForNextSentencePrediction(SeptetPreTrainedModel):
    """Whether B follows A in `<bos> A <sep> B` (Devlin et al. 2019): class 0 yes, 1 no, read off the first token.
    There are no segment embeddings; the separator marks the border."""

    accepts_loss_kwargs = False

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config, attention_mode="bidirectional")
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NextSentencePredictorOutput:
        r"""labels: (B,) 0 if B is the continuation of A, 1 if it is not."""
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        logits = self.nsp_head(first_token(outputs.last_hidden_state, attention_mask))  # (B, 2)
        loss = None
        if labels is not None:
            loss = classification_loss("labels", logits, labels.reshape(-1))
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class SeptetForPreTrainingOutput(ModelOutput):
    """loss: the masked-LM loss plus the next-sentence loss, as far as labels were given."""

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SeptetForPreTraining(SeptetPreTrainedModel):
    """Masked-token and next-sentence prediction together (Devlin et al. 2019), in both directions.

    Under gradient accumulation each micro-batch's loss weighs the same: the two parts are means over different things,
    masked tokens and rows, so no single number of items could divide their sum.
    """

    accepts_loss_kwargs = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config, attention_mode="bidirectional")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SeptetForPreTrainingOutput:
        r"""labels: (B, T) as for the masked LM; next_sentence_label: (B,) as for next-sentence prediction."""
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        hidden_states = outputs.last_hidden_state
        seq_relationship_logits = self.nsp_head(first_token(hidden_states, attention_mask))  # (B, 2)
        losses = []
        prediction_logits = None
        if labels is not None:
            loss, prediction_logits = language_model_loss(self.lm_head, hidden_states, labels, skip_logits, **kwargs)
            losses.append(loss)
        elif not (skip_logits and next_sentence_label is not None):
            prediction_logits = self.lm_head(hidden_states)
        if next_sentence_label is not None:
            next_sentence_label = next_sentence_label.reshape(-1)
            losses.append(classification_loss("next_sentence_label", seq_relationship_logits, next_sentence_label))
        return SeptetForPreTrainingOutput(
            loss=sum(losses) if losses else None,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SeptetForSequenceClassification(SeptetPreTrainedModel):
    """One label (or several, or a number) for a whole sequence, read as `config.classifier_pooling` says."""

    accepts_loss_kwargs = False

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SeptetModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""labels: (B,) classes or numbers, or (B, labels) of 0 and 1; `config.problem_type` says which."""
        kwargs["use_cache"] = False
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        pooled = self.pool(outputs.last_hidden_state, input_ids, attention_mask)
        logits = self.classifier(self.dropout(pooled))  # (B, labels)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def pool(self, hidden_states, input_ids, attention_mask):
        """(B, T, H) -> (B, H)."""
        if self.config.classifier_pooling == "first":
            return first_token(hidden_states, attention_mask)
        keep = attention_mask
        if keep is None or keep.dim() != 2:
            keep = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
            if input_ids is not None and self.config.pad_token_id is not None:
                keep = input_ids != self.config.pad_token_id
        if self.config.classifier_pooling == "mean":
            keep = keep.to(hidden_states.dtype)
            return (hidden_states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
        last = (keep.long() * torch.arange(1, keep.shape[1] + 1, device=keep.device)).argmax(-1)
        return hidden_states[torch.arange(last.shape[0], device=keep.device), last]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, binary cross-entropy or squared error by `config.problem_type` (guessed from the labels)."""
        labels = labels.to(logits.device)
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.dtype in (torch.long, torch.int):
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        if self.config.problem_type == "regression":
            if labels.numel() == logits.numel():
                labels = labels.view(logits.shape)
            check_labels("labels", labels, logits.shape)
            return functional.mse_loss(logits, labels.to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            check_labels("labels", labels, logits.shape)
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return classification_loss("labels", logits, labels.reshape(-1))


class SeptetForTokenClassification(SeptetPreTrainedModel):
    """One label for each token."""

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SeptetModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.token_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""labels: (B, T), -100 where a token carries none (padding, and all but the first piece of a word)."""
        kwargs["use_cache"] = False
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        logits = self.token_classifier(self.dropout(outputs.last_hidden_state))  # (B, T, labels)
        loss = None
        if labels is not None:
            loss = classification_loss("labels", logits, labels, kwargs.get("num_items_in_batch"))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def exact_matches(input_ids: torch.Tensor, separator: int, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T) 1 where the same token stands on the other side of the row's first separator too; 0 at padding."""
    second = (input_ids == separator).cumsum(-1) > 0
    same = (input_ids[:, :, None] == input_ids[:, None, :]) & (second[:, :, None] != second[:, None, :])  # (B, T, T)
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        kept = attention_mask.bool()
        same = same & kept[:, :, None] & kept[:, None, :]
    return same.any(-1).long()


class SeptetForQuestionAnswering(SeptetPreTrainedModel):
    """Where an answer starts and ends in `<bos> question <sep> context` (Devlin et al. 2019); position 0: no answer.

    With `config.exact_match_embedding` the model is told which tokens question and context share (Chen et al. 2017).
    """

    accepts_loss_kwargs = False

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        if config.exact_match_embedding:
            self.match_embeddings = nn.Embedding(2, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        r"""start_positions, end_positions: (B,) token indices, both inclusive; a position past the end is ignored.

        Raises:
            ValueError: `config.exact_match_embedding` and no `input_ids`.
        """
        kwargs["use_cache"] = False
        if self.config.exact_match_embedding:
            if input_ids is None:
                raise ValueError("exact_match_embedding compares token ids; give input_ids, not inputs_embeds")
            matches = exact_matches(input_ids, self.config.sep_token_id, attention_mask)
            embedded = embed(self.model.embed_tokens, input_ids)
            inputs_embeds, input_ids = embedded + self.match_embeddings(matches), None
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            batch, length = start_logits.shape
            loss = 0.0
            for name, logits, given in (
                ("start_positions", start_logits, start_positions.reshape(-1)),
                ("end_positions", end_logits, end_positions.reshape(-1)),
            ):
                positions = given.to(logits.device)
                check_labels(name, positions, (batch,))
                targets = positions.masked_fill(positions >= length, IGNORE_INDEX)
                loss = loss + mean_over_targets(cross_entropy(logits, targets), targets) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "SeptetForCausalLM",
    "SeptetForMaskedLM",
    "SeptetForNextSentencePrediction",
    "SeptetForPreTraining",
    "SeptetForQuestionAnswering",
    "SeptetForSequenceClassification",
    "SeptetForTokenClassification",
    "SeptetModel",
    "SeptetPreTrainedModel",
]
