"""Every attention backend, cache and way of generating reads the same: against one document alone, and against peers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    QuantizedCache,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
    modeling_flash_attention_utils,
)

from septet.modeling.configuration_septet import SeptetConfig
from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetModel, project
from septet.modeling.presets import PRESETS, preset_config

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NO_END = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "eos_token_id": None}


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(16, 300, shape, generator=torch.Generator().manual_seed(seed))


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights: attention must matter, or a wrong mask would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SeptetForCausalLM:
    torch.manual_seed(0)
    return sharpened(SeptetForCausalLM(preset_config("tiny", vocab_size=300, max_position_embeddings=64, **IDS)))


def reading_with(model: SeptetForCausalLM, attention: str) -> SeptetModel:
    config = SeptetConfig(**{**model.config.to_dict(), "attn_implementation": None})
    other = SeptetModel._from_config(config, attn_implementation="eager").eval()
    other.load_state_dict(model.model.state_dict())
    other.config._attn_implementation = attention
    return other


# What FlashAttention 2 promises, in plain torch: rows of the flattened batch between two bounds see each other alone.


def flash(query, key, value, causal=False, softmax_scale=None, dropout_p=0.0, window_size=(-1, -1)):
    length, total = query.shape[1], key.shape[1]
    distance = torch.arange(total - length, total)[:, None] - torch.arange(total)[None]
    seen = torch.ones(length, total, dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if window_size[0] >= 0:
        seen &= distance <= window_size[0]
    states = [x.transpose(1, 2) for x in (query, key, value)]
    return functional.scaled_dot_product_attention(
        *states, attn_mask=seen, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


def flash_varlen(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    causal=False, softmax_scale=None, dropout_p=0.0, window_size=(-1, -1),
):  # fmt: skip
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    bounds = cu_seqlens_q.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(query)
    return torch.cat(
        [
            flash(*(x[None, start:end] for x in (query, key, value)), causal, softmax_scale, window_size=window_size)[0]
            for start, end in pairwise(bounds)
        ]
    )


@pytest.fixture
def flash_attention(monkeypatch):
    """FlashAttention's functions, which need a GPU, replaced; what transformers does around them stays."""
    utils = modeling_flash_attention_utils
    process = utils._lazy_define_process_function(flash_varlen)
    found = ((flash, flash_varlen, None, utils._pad_input, utils._unpad_input), (process, dict))
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: found)


flex_attention = pytest.param(
    "flex_attention",
    marks=pytest.mark.skipif(
        not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() != "AVX512",
        reason="torch 2.13's flex_attention for AVX2 gives NaN, or does not compile",
    ),
)


@pytest.mark.parametrize("attention", ["eager", "sdpa", flex_attention, "flash_attention_2"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "packed and padded"])
def test_documents_are_apart_in_every_backend(
    model, attention: str, mode: str, padded: bool, flash_attention, request
) -> None:
    """Two rows, whose documents end at different places; with padding, the last three positions of the second row."""
    other = reading_with(model, attention)
    ids = random_ids(2, 24)
    positions = torch.stack(
        [
            torch.cat([torch.arange(7), torch.arange(17)]),
            torch.cat([torch.arange(12), torch.arange(9), torch.arange(3)]),
        ]
    )
    mask = None
    if padded:
        mask = torch.ones_like(ids)
        mask[1, 21:] = 0
    with torch.no_grad():
        packed = other(ids, mask, positions, attention_mode=mode, use_cache=False).last_hidden_state
        for row, start, end in ((0, 0, 7), (0, 7, 24), (1, 0, 12), (1, 12, 21)):
            alone = model.model(ids[row : row + 1, start:end], attention_mode=mode).last_hidden_state
            torch.testing.assert_close(packed[row, start:end], alone[0], rtol=0, atol=2e-4)
        leaking = model.model(ids, attention_mode=mode).last_hidden_state
    assert (leaking - packed)[0, 7:].abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_flash_attentions_bounds_are_documents_everywhere(model, attention: str, flash_attention) -> None:
    """A collator that flattens gives the bounds alone; they must not be lost on a backend that does not use them."""
    ids, bounds = random_ids(1, 20), torch.tensor([0, 8, 20], dtype=torch.int32)
    kwargs = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12, "max_length_k": 12}
    with torch.no_grad():
        packed = reading_with(model, attention)(ids, **kwargs).last_hidden_state
        alone = [model.model(part).last_hidden_state for part in (ids[:, :8], ids[:, 8:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=2e-4)


def test_packed_documents_do_not_continue_a_cache(model) -> None:
    cache = DynamicCache(config=model.config)
    model(random_ids(1, 5), past_key_values=cache)
    with pytest.raises(ValueError, match="the cache holds 5 positions already"):
        model(random_ids(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]]), past_key_values=cache)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_positions_given_once_hold_for_every_row(model, attention: str, flash_attention) -> None:
    ids, positions = random_ids(3, 20), torch.cat([torch.arange(8), torch.arange(12)])[None]
    with torch.no_grad():
        packed = reading_with(model, attention)(ids, position_ids=positions).last_hidden_state
        alone = [model.model(part).last_hidden_state for part in (ids[:, :8], ids[:, 8:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=2e-4)


def test_packed_rows_make_no_cache(model) -> None:
    assert model(random_ids(1, 6), use_cache=True).past_key_values.get_seq_length() == 6
    assert (
        model(random_ids(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=True).past_key_values is None
    )


def test_padding_on_the_left_is_no_document(model) -> None:
    """Its positions restart too, but the row has one document, and a cache that can be continued."""
    ids = random_ids(1, 8)
    padded, mask = functional.pad(ids, (3, 0)), torch.tensor([[0] * 3 + [1] * 8])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    found = model(padded, attention_mask=mask, position_ids=positions, use_cache=True)
    torch.testing.assert_close(found.logits[:, 3:], model(ids).logits, rtol=0, atol=1e-4)
    assert found.past_key_values.get_seq_length() == 11


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_a_compiled_graph_continues_a_cache(model, cache_class) -> None:
    """A graph cannot see that positions do not restart, so its mask of documents must know what the cache holds."""
    torch._dynamo.reset()
    ids = random_ids(2, 16)
    options = {"max_cache_len": 24} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config, **options)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        parts = [
            compiled(ids[:, part], position_ids=torch.arange(16)[None, part], past_key_values=cache).logits
            for part in (slice(0, 9), slice(9, 16))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_compiled_graph_reads_the_same(model, packed: bool) -> None:
    torch._dynamo.reset()
    ids = random_ids(2, 16)
    positions = torch.cat([torch.arange(6), torch.arange(10)]).expand(2, -1) if packed else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(
            compiled(ids, position_ids=positions, use_cache=False).logits, expected, rtol=0, atol=1e-4
        )


def test_an_exported_program_reads_the_same(model) -> None:
    ids, other = random_ids(2, 12), random_ids(3, 20, seed=1)
    shape = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2, max=60)}
    program = torch.export.export(
        model, (), {"input_ids": ids, "use_cache": False},
        dynamic_shapes={"input_ids": shape, "use_cache": None}, strict=False,
    )  # fmt: skip
    with torch.no_grad():
        found = program.module()(input_ids=other, use_cache=False).logits
        torch.testing.assert_close(found, model(other).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_gradient_checkpointing_changes_no_gradient(mode: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    config = preset_config("tiny", vocab_size=300, max_position_embeddings=64, attention_mode=mode, **IDS)
    model = SeptetModel(config).train()
    ids, positions = random_ids(2, 16), torch.arange(16).remainder(8).expand(2, -1)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(ids, position_ids=positions).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.layers[0].gradient_checkpointing
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def greedy_without_cache(model: SeptetForCausalLM, ids: torch.Tensor, count: int = 12) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def test_ways_of_generating_agree(model) -> None:
    prompt = random_ids(2, 9)
    expected = greedy_without_cache(model, prompt)
    assert torch.equal(model.generate(prompt, **NO_END), expected)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **NO_END), expected)
    draft = SeptetForCausalLM(model.config).eval()
    one = prompt[:1]
    assert torch.equal(model.generate(one, assistant_model=draft, **NO_END), expected[:1])
    assert torch.equal(model.generate(one, prompt_lookup_num_tokens=3, **NO_END), expected[:1])


@pytest.mark.parametrize("windows", [{}, {"use_sliding_window": True, "sliding_window": 4}], ids=["whole", "windows"])
def test_a_prefix_is_read_the_same_with_every_cache(model, windows: dict) -> None:
    fields = {"vocab_size": 300, "max_position_embeddings": 64, "attention_mode": "prefix", **IDS, **windows}
    other = SeptetForCausalLM(preset_config("tiny", **fields)).eval()
    other.load_state_dict(model.state_dict())
    prompt = random_ids(2, 9)
    for lengths in (None, torch.tensor([3, 7])):
        given, expected = torch.tensor([9, 9]) if lengths is None else lengths, prompt
        with torch.no_grad():
            for _ in range(12):
                logits = other(expected, prefix_lengths=given, use_cache=False).logits
                expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], 1)
        for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            assert torch.equal(other.generate(prompt, prefix_lengths=lengths, **cache, **NO_END), expected)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        other.generate(prompt, prefill_chunk_size=4, **NO_END)
    with pytest.raises(ValueError, match="continuous batching cannot read a prefix"):
        other.generate_batch(prompt.tolist())


def test_one_beam_is_greedy_and_more_score_at_least_as_high(model) -> None:
    prompt = random_ids(2, 9)
    options = {**NO_END, "num_beams": 4, "length_penalty": 0.0}
    beams, greedy = model.generate(prompt, **options), model.generate(prompt, **NO_END)

    def score(ids: torch.Tensor) -> torch.Tensor:
        log_probs = model(ids).logits.log_softmax(-1)[:, 8:-1].gather(-1, ids[:, 9:, None])
        return log_probs.sum((1, 2)).detach()

    assert (score(beams) >= score(greedy) - 1e-4).all()
    assert not torch.equal(beams, greedy)


def test_a_quantised_cache_stays_near(model) -> None:
    prompt = random_ids(1, 40)
    cache = QuantizedCache("quanto", model.config, nbits=4, residual_length=8, q_group_size=16)
    with torch.no_grad():
        model(prompt[:, :-1], past_key_values=cache)
        near = model(prompt[:, -1:], past_key_values=cache).logits[:, -1]
        exact = model(prompt).logits[:, -1]
    assert 0 < (near - exact).norm() / exact.norm() < 0.3


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_sliding_windows_are_qwen3s(attention: str, flash_attention) -> None:
    torch.manual_seed(0)
    fields = {
        **PRESETS["tiny"], "vocab_size": 300, "max_position_embeddings": 64, "use_sliding_window": True,
        "sliding_window": 5, "max_window_layers": 1,
    }  # fmt: skip
    ours = sharpened(SeptetForCausalLM(SeptetConfig(**fields)))
    theirs = Qwen3ForCausalLM._from_config(Qwen3Config(**fields), attn_implementation="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    assert ours.config.layer_types == ["full_attention", "sliding_attention"]
    ours.config._attn_implementation = attention
    ids = random_ids(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
        cache = DynamicCache(config=ours.config)
        parts = [ours(part, past_key_values=cache).logits for part in (ids[:, :10], *ids[:, 10:].split(1, 1))]
        torch.testing.assert_close(torch.cat(parts, 1), theirs(ids).logits, rtol=0, atol=1e-4)
    if attention == "sdpa":
        assert torch.equal(ours.generate(ids, **NO_END), theirs.generate(ids, **NO_END))
        assert torch.equal(ours.generate(ids, cache_implementation="static", **NO_END), theirs.generate(ids, **NO_END))


def test_a_window_bounds_causal_reading_alone() -> None:
    fields = {"use_sliding_window": True, "sliding_window": 3, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = sharpened(SeptetModel(preset_config("tiny", vocab_size=300, **fields)))
    ids, changed = random_ids(1, 20), random_ids(1, 20)
    changed[0, 0] += 1
    with torch.no_grad():
        moved = {
            mode: (model(ids, attention_mode=mode)[0] - model(changed, attention_mode=mode)[0]).abs().amax(-1)[0] > 1e-5
            for mode in ("causal", "bidirectional")
        }
    assert moved["causal"].tolist() == [True] * 5 + [False] * 15  # two layers reach twice as far, less one
    assert moved["bidirectional"].all()


SCALINGS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_positions_are_llamas(kind: str) -> None:
    torch.manual_seed(0)
    fields = {
        **PRESETS["tiny"], "vocab_size": 300, "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[kind]},
    }  # fmt: skip
    ours = sharpened(SeptetForCausalLM(SeptetConfig(**fields, qk_norm=False)))
    theirs = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    plain = SeptetForCausalLM(SeptetConfig(**{**fields, "rope_parameters": None}, qk_norm=False)).eval()
    plain.load_state_dict(ours.state_dict())
    ids = random_ids(1, 48)  # beyond the trained range, where "dynamic" begins
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
        assert (ours(ids).logits - plain(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 9])
@pytest.mark.parametrize(("width", "outputs"), [(64, 128), (64, 12), (1024, 96)])
def test_products_of_few_rows_are_products(rows: int, width: int, outputs: int) -> None:
    linear = torch.nn.Linear(width, outputs, bias=False)
    states = torch.randn(rows, 1, width)
    with torch.no_grad():
        torch.testing.assert_close(project(linear, states), linear(states))
        linear.register_forward_hook(lambda module, args, output: output + 1)
        torch.testing.assert_close(project(linear, states), linear(states))
