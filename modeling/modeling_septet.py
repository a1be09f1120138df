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
from torch.nn import functional
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
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
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_septet import SeptetConfig

IGNORE_INDEX = -100


class SeptetRMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), computed in float32 by torch's fused kernel."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = functional.rms_norm(hidden_states.float(), (hidden_states.shape[-1],), eps=self.eps)
        return self.weight * normed.to(hidden_states.dtype)


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
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq  # (B, T, D/2)
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, D)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(x1, x2) -> (-x2, x1) over the two halves of the last dimension."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates queries or keys (B, N, T, D) by their positions' angles, cos and sin (B, 1, T, D)."""
    return states * cos + rotate_half(states) * sin


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
        self.is_causal = config.attention_mode != "bidirectional"
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.o_proj.writes_residual = True  # for _init_weights
        self.q_norm = SeptetRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = SeptetRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_and_length = hidden_states.shape[:-1]
        heads = (*batch_and_length, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, N, T, D)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, K, T, D)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # (B, K, T, D)

        cos, sin = position_embeddings
        query, key = apply_rotary_pos_emb(query, cos, sin), apply_rotary_pos_emb(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, K, S, D)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_length, -1).contiguous()), weights


class SeptetMLP(nn.Module):
    """Gated feed-forward, SwiGLU by default (Shazeer 2020): down(act(gate(x)) * up(x))."""

    def __init__(self, config: SeptetConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_proj.writes_residual = True  # for _init_weights
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class SeptetDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block. Qwen3's, with dropout on the two residual branches."""

    def __init__(self, config: SeptetConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SeptetAttention(config, layer_idx)
        self.mlp = SeptetMLP(config)
        self.input_layernorm = SeptetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SeptetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

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
        """Normal with std `initializer_range`; norms 1, biases 0 (transformers' rule), and two exceptions:

        - the projections that write into the residual stream get std / sqrt(2 layers) (Radford et al. 2019, GPT-2);
        - the output embedding gets at most 0.4 / sqrt(H): the final norm makes each hidden state of length sqrt(H), so
          logits then start with std 0.4 at most and the first loss is ln(V) + 0.4^2 / 2.
        """
        super()._init_weights(module)
        if getattr(module, "writes_residual", False):
            init.normal_(module.weight, std=self.config.initializer_range * (2 * self.config.num_hidden_layers) ** -0.5)
        elif module is self.get_output_embeddings() or (
            isinstance(module, nn.Embedding) and self.config.tie_word_embeddings
        ):
            output_std = min(self.config.initializer_range, 0.4 * self.config.hidden_size**-0.5)
            init.normal_(module.weight, std=output_std)


def document_ids_of(position_ids: torch.Tensor) -> torch.Tensor:
    """Numbers the documents of packed rows: (B, T) positions that restart -> (B, T) document indices from 0."""
    return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)


class SeptetModel(SeptetPreTrainedModel):
    """The decoder without a head. Qwen3's, with masks for three ways of reading and exact document boundaries."""

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([SeptetDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
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
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""Hidden states of a batch of sequences.

        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`, (B, T, H).
            attention_mask: (B, S) ones where there is a token and zeros where there is padding, or a prepared 4D mask.
            position_ids: (B, T). Positions that restart within a row mark packed documents; no document sees another.
            prefix_lengths: (B,) how many leading positions of each row, padding included, see one another in both
                directions. Only with `attention_mode` "causal" or "prefix".
            attention_mode: overrides `config.attention_mode` for this call.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or `prefix_lengths` in bidirectional mode.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        causal = (attention_mode or self.config.attention_mode) != "bidirectional"
        if not causal and prefix_lengths is not None:
            raise ValueError("prefix_lengths mean nothing in bidirectional reading; leave them out or read causally")
        if use_cache and past_key_values is None and causal:
            past_key_values = DynamicCache(config=self.config)

        documents = None
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        elif not torch.compiler.is_compiling() and position_ids.shape[-1] > 1:
            # The prompt of a padded batch also restarts; there the mask of documents hides only padding.
            documents = document_ids_of(position_ids)
            documents = documents if bool((documents[:, -1] > documents[:, 0]).any()) else None

        if not isinstance(attention_mask, dict):  # `generate` prepares a dict of masks for static caches
            attention_mask = septet_mask(
                self.config, inputs_embeds, attention_mask, past_key_values, causal, documents, prefix_lengths
            )
        else:
            attention_mask = attention_mask["full_attention"]

        hidden_states = inputs_embeds
        cos, sin = self.rotary_emb(hidden_states, position_ids)
        position_embeddings = cos.unsqueeze(1), sin.unsqueeze(1)  # (B, 1, T, D)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                position_ids=position_ids,
                is_causal=causal,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


def septet_mask(
    config: SeptetConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    causal: bool,
    documents: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
):
    """The mask for the configured attention implementation, or None where the implementation needs none.

    Args:
        documents: (B, T) index of each position's document; positions of different documents do not see each other.
        prefix_lengths: (B,) leading positions that see one another in both directions.

    Raises:
        ValueError: a prefix or a document mask that the attention implementation cannot express.
    """
    flash = "flash" in (config._attn_implementation or "")
    if flash and prefix_lengths is not None:
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
    if documents is not None and not flash:  # flash attention separates documents by position_ids on its own
        last = documents.shape[1] - 1  # a static cache has more columns than there are positions; causality hides them

        def same_document(batch_idx, head_idx, q_idx, kv_idx):
            return documents[batch_idx, q_idx.clamp(max=last)] == documents[batch_idx, kv_idx.clamp(max=last)]

        common["and_mask_function"] = same_document
    if not causal:
        return create_bidirectional_mask(**common)
    if prefix_lengths is not None:

        def within_prefix(batch_idx, head_idx, q_idx, kv_idx):
            return kv_idx < prefix_lengths[batch_idx]

        common["or_mask_function"] = within_prefix
    return create_causal_mask(**common)


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden_states @ weight.T` that holds the logits of one chunk of positions at a time.

    The gradients are computed in the forward pass, chunk by chunk, while the chunk's logits are at hand: they are
    linear in the incoming gradient of a scalar loss, so the backward pass only scales them. The idea is that of Liger
    Kernel (Hsu et al. 2024) and Cut Cross-Entropy (Wijmans et al. 2024), written here in plain torch.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, labels, label_smoothing, z_loss_weight, chunk_size):
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_states) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        loss = hidden_states.new_zeros((), dtype=torch.float32)
        vocab_size = weight.shape[0]
        for start in range(0, hidden_states.shape[0], chunk_size):
            chunk = slice(start, start + chunk_size)
            states, targets = hidden_states[chunk], labels[chunk][:, None]
            logits = (states @ weight.T).float()  # (chunk, V)
            log_z = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_z - (1 - label_smoothing) * logits.gather(1, targets)).sum()
            if label_smoothing:
                loss -= label_smoothing * logits.mean(dim=-1).sum()
            if z_loss_weight:
                loss += z_loss_weight * log_z.square().sum()
            if need_hidden or need_weight:
                grad_logits = logits.sub_(log_z).exp_()  # softmax, in the logits' own memory
                if z_loss_weight:
                    grad_logits *= 1 + 2 * z_loss_weight * log_z
                grad_logits.scatter_add_(1, targets, torch.full_like(log_z, label_smoothing - 1))
                if label_smoothing:
                    grad_logits -= label_smoothing / vocab_size
                grad_logits = grad_logits.to(weight.dtype)
                if need_hidden:
                    torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                if need_weight:
                    if grad_weight.dtype == weight.dtype:
                        grad_weight.addmm_(grad_logits.T, states)
                    else:
                        grad_weight += grad_logits.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


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
    keep = labels != IGNORE_INDEX
    return _ChunkedLinearCrossEntropy.apply(
        hidden_states[keep], weight, labels[keep], label_smoothing, z_loss_weight, chunk_size
    )


def language_model_loss(
    head: nn.Linear,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    **kwargs,
) -> torch.Tensor:
    """Mean cross-entropy over the targets, or the sum over `num_items_in_batch` (Trainer's gradient accumulation)."""
    total = chunked_linear_cross_entropy(hidden_states, head.weight, labels, label_smoothing, z_loss_weight)
    targets = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (targets.to(total.device) if isinstance(targets, torch.Tensor) else targets)


class SeptetForCausalLM(SeptetPreTrainedModel, GenerationMixin):
    """Next-token prediction and generation, causal or prefix-LM by `config.attention_mode`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
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
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""Logits, and the loss if there are labels.

        Args:
            labels: (B, T); position *t*'s logits are compared with `labels[:, t + 1]`; -100 is ignored.
            logits_to_keep: project only the last so many positions (0: all), or these positions.
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
            attention_mode="causal",
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
            loss = language_model_loss(self.lm_head, hidden_states, shifted, **kwargs)
        if labels is None or not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
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
        if self.config.attention_mode == "prefix" and prompt is not None and kwargs.get("prefix_lengths") is None:
            kwargs["prefix_lengths"] = torch.full((prompt.shape[0],), prompt.shape[1], device=prompt.device)
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, is_first_iteration=False, **kwargs):
        if past_key_values is not None and not is_first_iteration:
            kwargs.pop("prefix_lengths", None)  # the prompt lies in the cache, read in both directions already
        return super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, is_first_iteration=is_first_iteration, **kwargs
        )

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, **kwargs):
        """The masks that `generate` prepares ahead for static caches."""
        prefix_lengths = None
        if config.attention_mode == "prefix" and inputs_embeds.shape[1] > 1 and kwargs.get("is_first_iteration", True):
            prefix_lengths = torch.full(inputs_embeds.shape[:1], inputs_embeds.shape[1], device=inputs_embeds.device)
        return {
            "full_attention": septet_mask(
                config, inputs_embeds, attention_mask, past_key_values, True, prefix_lengths=prefix_lengths
            )
        }


class SeptetForMaskedLM(SeptetPreTrainedModel):
    """Masked-token prediction. Reads in both directions; shares `lm_head` with the causal head, so one checkpoint
    serves both."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
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
        **kwargs,
    ) -> MaskedLMOutput:
        r"""labels: (B, T) the token to be found at each masked position, -100 elsewhere."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, None, inputs_embeds, attention_mode="bidirectional", **kwargs
        )
        hidden_states = outputs.last_hidden_state
        loss = None if labels is None else language_model_loss(self.lm_head, hidden_states, labels, **kwargs)
        logits = None if skip_logits and labels is not None else self.lm_head(hidden_states)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SeptetForNextSentencePrediction(SeptetPreTrainedModel):
    """Whether B follows A in `<bos> A <sep> B` (Devlin et al. 2019): class 0 yes, 1 no, read off the first token.
    There are no segment embeddings; the separator marks the border."""

    accepts_loss_kwargs = False

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
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
        **kwargs,
    ) -> NextSentencePredictorOutput:
        r"""labels: (B,) 0 if B is the continuation of A, 1 if it is not."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, None, inputs_embeds, attention_mode="bidirectional", **kwargs
        )
        logits = self.nsp_head(outputs.last_hidden_state[:, 0])  # (B, 2)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels.view(-1))
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
    """Masked-token and next-sentence prediction together (Devlin et al. 2019), in both directions."""

    accepts_loss_kwargs = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
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
        **kwargs,
    ) -> SeptetForPreTrainingOutput:
        r"""labels: (B, T) as for the masked LM; next_sentence_label: (B,) as for next-sentence prediction."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, None, inputs_embeds, attention_mode="bidirectional", **kwargs
        )
        hidden_states = outputs.last_hidden_state
        seq_relationship_logits = self.nsp_head(hidden_states[:, 0])  # (B, 2)
        losses = []
        if labels is not None:
            losses.append(language_model_loss(self.lm_head, hidden_states, labels, **kwargs))
        if next_sentence_label is not None:
            losses.append(functional.cross_entropy(seq_relationship_logits.float(), next_sentence_label.view(-1)))
        return SeptetForPreTrainingOutput(
            loss=sum(losses) if losses else None,
            prediction_logits=None if skip_logits and losses else self.lm_head(hidden_states),
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
        **kwargs,
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
            return hidden_states[:, 0]
        keep = attention_mask
        if keep is None or keep.dim() != 2:
            keep = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
            if input_ids is not None and self.config.pad_token_id is not None:
                keep = input_ids != self.config.pad_token_id
        keep = keep.to(hidden_states.dtype)
        if self.config.classifier_pooling == "mean":
            return (hidden_states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
        last = (keep * torch.arange(1, keep.shape[1] + 1, device=keep.device)).argmax(-1)
        return hidden_states[torch.arange(len(last), device=keep.device), last]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, binary cross-entropy or squared error by `config.problem_type` (guessed from the labels)."""
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.dtype in (torch.long, torch.int):
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        if self.config.problem_type == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(logits.squeeze(-1).shape))
        if self.config.problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels.view(-1))


class SeptetForTokenClassification(SeptetPreTrainedModel):
    """One label for each token."""

    accepts_loss_kwargs = False

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
        **kwargs,
    ) -> TokenClassifierOutput:
        r"""labels: (B, T), -100 where a token carries none (padding, and all but the first piece of a word)."""
        kwargs["use_cache"] = False
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        logits = self.token_classifier(self.dropout(outputs.last_hidden_state))  # (B, T, labels)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SeptetForQuestionAnswering(SeptetPreTrainedModel):
    """Where an answer starts and ends in `<bos> question <sep> context` (Devlin et al. 2019); position 0: no answer."""

    accepts_loss_kwargs = False

    def __init__(self, config: SeptetConfig):
        super().__init__(config)
        self.model = SeptetModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
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
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        r"""start_positions, end_positions: (B,) token indices, both inclusive; a position past the end is ignored."""
        kwargs["use_cache"] = False
        outputs = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            loss = sum(
                functional.cross_entropy(logits.float(), positions.view(-1).clamp(0, length), ignore_index=length)
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            )
            loss = loss / 2
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
