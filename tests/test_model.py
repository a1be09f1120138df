"""The model against references: transformers' own Qwen3 and Llama, plain formulas, and itself read another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, StaticCache

from septet.modeling.configuration_septet import SeptetConfig
from septet.modeling.modeling_septet import (
    SeptetForCausalLM,
    SeptetForMaskedLM,
    SeptetForNextSentencePrediction,
    SeptetForPreTraining,
    SeptetForQuestionAnswering,
    SeptetForSequenceClassification,
    SeptetForTokenClassification,
    SeptetModel,
    chunked_linear_cross_entropy,
    document_ids_of,
    exact_matches,
)
from septet.modeling.presets import PRESETS, preset_config

SHAPE = PRESETS["tiny"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny(**fields) -> SeptetConfig:
    return preset_config("tiny", **{"vocab_size": 300, "max_position_embeddings": 64, **IDS, **fields})


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(16, 300, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def causal() -> SeptetForCausalLM:
    torch.manual_seed(0)
    model = SeptetForCausalLM(tiny()).eval()
    with torch.no_grad():  # attention must matter, or a wrong mask would not show
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("peer", ["qwen3", "llama"])
def test_logits_loss_and_gradients_equal_the_native_model(peer: str, tied: bool) -> None:
    torch.manual_seed(1)
    fields = {**SHAPE, "vocab_size": 300, "tie_word_embeddings": tied, "max_position_embeddings": 64}
    ours = SeptetForCausalLM(SeptetConfig(**fields, qk_norm=peer == "qwen3"))
    if peer == "qwen3":
        theirs = Qwen3ForCausalLM(Qwen3Config(**fields))
    else:
        theirs = LlamaForCausalLM(LlamaConfig(**fields))
    theirs.load_state_dict(ours.state_dict())
    ids = random_ids(2, 40)
    labels = ids.clone()
    labels[:, :7] = -100
    expected = theirs(ids, labels=labels)
    expected.loss.backward()
    actual = ours(ids, labels=labels, skip_logits=True)
    assert actual.logits is None
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-6, atol=0)
    assert torch.equal(ours(ids).logits, expected.logits)  # bit for bit
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_packed_documents_do_not_see_each_other(causal, attention: str, mode: str, with_mask: bool) -> None:
    model = SeptetModel._from_config(causal.config, attn_implementation=attention).eval()
    model.load_state_dict(causal.model.state_dict())
    ids = random_ids(1, 30)
    positions = torch.cat([torch.arange(11), torch.arange(19)])[None]
    mask = torch.ones_like(ids) if with_mask else None
    packed = model(ids, attention_mask=mask, position_ids=positions, attention_mode=mode).last_hidden_state
    alone = [model(part, attention_mode=mode).last_hidden_state for part in (ids[:, :11], ids[:, 11:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-4)
    leaking = model(ids, attention_mode=mode).last_hidden_state
    assert (leaking - packed).abs().max() > 1e-2


def test_document_ids_count_restarts() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert document_ids_of(positions).tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("counted", [True, False], ids=["positions count padding", "positions leave padding out"])
def test_padding_inside_a_row_begins_no_document(counted: bool) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]])
    positions = torch.arange(8)[None] if counted else (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    assert (document_ids_of(positions, mask)[:, -1] == 0).all()
    packed = torch.tensor([[0, 1, 2, 9, 9, 0, 1, 2]])
    assert document_ids_of(packed, mask[:1]).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_padding_anywhere_is_read_as_qwen3_reads_it() -> None:
    """A gap in the middle, prompts with left padding in chunks, and a second turn with left padding into a cache."""
    torch.manual_seed(0)
    ours = SeptetForCausalLM(tiny()).eval()
    fields = {name: getattr(ours.config, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "pad_token_id",
    )}  # fmt: skip
    peer = Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
    peer.load_state_dict(ours.state_dict())
    ids, gap, left, second = random_ids(2, 12), *(torch.ones(2, 12, dtype=torch.long) for _ in range(3))
    gap[0, 4:7], left[0, :6], second[0, 6:8] = 0, 0, 0
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}

    def two_turns(model):
        cache = DynamicCache(config=model.config)
        first = torch.ones(2, 6, dtype=torch.long)
        model.generate(ids[:, :6], attention_mask=first, past_key_values=cache, **{**options, "max_new_tokens": 1})
        return model.generate(ids, attention_mask=second, past_key_values=cache, **options)

    for answer in (
        lambda model: model.generate(ids, attention_mask=gap, **options),
        lambda model: model.generate(ids, attention_mask=left, prefill_chunk_size=4, **options),
        two_turns,
    ):
        assert torch.equal(answer(ours), answer(peer))
    alone = ours(ids[:1, gap[0] == 1]).logits
    positions = (gap.cumsum(-1) - 1).clamp(min=0)
    together = ours(ids, attention_mask=gap, position_ids=positions).logits[:1, gap[0] == 1]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_reading_directions(causal) -> None:
    ids, changed = random_ids(1, 20), random_ids(1, 20)
    changed[0, 15] = 299 - changed[0, 15] + 16

    def moved(**kwargs) -> list[bool]:
        """Which positions' hidden states a change at position 15 reaches."""
        before, after = (causal.model(x, **kwargs).last_hidden_state for x in (ids, changed))
        return ((before - after).abs().amax(-1)[0] > 1e-5).tolist()

    assert moved() == [False] * 15 + [True] * 5
    assert moved(attention_mode="bidirectional") == [True] * 20
    assert moved(prefix_lengths=torch.tensor([16])) == [True] * 20
    assert moved(prefix_lengths=torch.tensor([15])) == [False] * 15 + [True] * 5
    with pytest.raises(ValueError, match="prefix_lengths"):
        causal.model(ids, attention_mode="bidirectional", prefix_lengths=torch.tensor([3]))


@pytest.mark.parametrize("mode", ["causal", "prefix"])
def test_generation_equals_a_loop_without_cache(causal, mode: str) -> None:
    model = SeptetForCausalLM(tiny(attention_mode=mode)).eval()
    model.load_state_dict(causal.state_dict())
    prompt = random_ids(2, 9)
    expected = prompt
    for _ in range(10):
        prefix = torch.tensor([9, 9]) if mode == "prefix" else None
        logits = model(expected, prefix_lengths=prefix, use_cache=False).logits
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], 1)
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, **options), expected)
    assert torch.equal(model.generate(prompt, use_cache=False, **options), expected)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **options), expected)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], 1)
    mask = (padded > 0).long()
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], expected)


def test_prefix_prompt_is_read_in_both_directions_with_a_static_cache(causal) -> None:
    model = SeptetForCausalLM(tiny(attention_mode="prefix")).eval()
    model.load_state_dict(causal.state_dict())
    ids = random_ids(1, 8)
    cache = StaticCache(config=model.config, max_cache_len=16)
    inputs = model.prepare_inputs_for_generation(
        ids, past_key_values=cache, attention_mask=torch.ones_like(ids), is_first_iteration=True,
        prefix_lengths=torch.tensor([8]),
    )  # fmt: skip
    static = model(**inputs).logits
    plain = model(ids, prefix_lengths=torch.tensor([8]), use_cache=False).logits
    torch.testing.assert_close(static, plain, rtol=0, atol=1e-5)
    assert (plain - model(ids, use_cache=False).logits).abs().max() > 1e-2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss_weight", [0.0, 0.01])
def test_chunked_cross_entropy_equals_the_plain_one(smoothing: float, z_loss_weight: float) -> None:
    """In float32, to 1e-6 relative: of the loss, and of each gradient's length."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 500, 192, generator=generator, requires_grad=True)
    weight = (0.05 * torch.randn(4096, 192, generator=generator)).requires_grad_()
    labels = torch.randint(0, 4096, (3, 500), generator=generator)
    labels[0, :20] = -100
    logits = (states @ weight.T)[labels != -100]
    plain = functional.cross_entropy(logits, labels[labels != -100], reduction="sum", label_smoothing=smoothing)
    plain = plain + z_loss_weight * logits.logsumexp(-1).square().sum()
    expected = torch.autograd.grad(plain * 0.3, (states, weight))
    loss = chunked_linear_cross_entropy(states, weight, labels, smoothing, z_loss_weight, chunk_size=170)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for actual, wanted in zip(torch.autograd.grad(loss * 0.3, (states, weight)), expected, strict=True):
        assert (actual - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunked_cross_entropy_in_half_precision(dtype: torch.dtype) -> None:
    """As near to float64 as the plain loss is, and finite for a large vocabulary of nearly equal logits."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 32, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(70_000, 32, generator=generator) * 2e-3).to(dtype).requires_grad_()
    labels = torch.randint(0, 70_000, (40,), generator=generator)
    exact = torch.autograd.grad(
        functional.cross_entropy(states.double() @ weight.double().T, labels, reduction="sum"), (states, weight)
    )
    plain = torch.autograd.grad(
        functional.cross_entropy((states @ weight.T).float(), labels, reduction="sum"), (states, weight)
    )
    chunked = torch.autograd.grad(chunked_linear_cross_entropy(states, weight, labels, chunk_size=16), (states, weight))
    for found, peer, wanted in zip(chunked, plain, exact, strict=True):
        assert found.isfinite().all()
        assert (found.double() - wanted).norm() <= 1.5 * (peer.double() - wanted).norm() + 1e-3 * wanted.norm()


def test_training_without_logits_compiles_whole() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SeptetForCausalLM(tiny()).train()
    ids = random_ids(2, 12)
    labels = ids.clone()
    labels[0, :5] = -100
    expected = model(ids, labels=labels, skip_logits=True).loss
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=labels, skip_logits=True).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for found, want in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_losses_of_the_heads_are_their_formulas() -> None:
    torch.manual_seed(0)
    ids, mask = random_ids(4, 12), torch.ones(4, 12, dtype=torch.long)
    mask[0, 8:] = 0
    labels = torch.full_like(ids, -100)
    labels[:, 3:6] = ids[:, 3:6]

    masked = SeptetForMaskedLM(tiny()).eval()
    out = masked(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))

    both = SeptetForPreTraining(tiny()).eval()
    sentence = torch.tensor([0, 1, 1, 0])
    out = both(ids, attention_mask=mask, labels=labels, next_sentence_label=sentence)
    words = functional.cross_entropy(out.prediction_logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, words + functional.cross_entropy(out.seq_relationship_logits, sentence))

    pairs = SeptetForNextSentencePrediction(tiny()).eval()
    out = pairs(ids, attention_mask=mask, labels=sentence)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, sentence))

    classes = SeptetForSequenceClassification(tiny(num_labels=3, attention_mode="bidirectional")).eval()
    kinds = torch.tensor([0, 2, 1, 1])
    out = classes(ids, attention_mask=mask, labels=kinds)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, kinds))
    several = SeptetForSequenceClassification(tiny(num_labels=3, problem_type="multi_label_classification")).eval()
    targets = torch.tensor([[0.0, 1, 1]] * 4)
    out = several(ids, attention_mask=mask, labels=targets)
    torch.testing.assert_close(out.loss, functional.binary_cross_entropy_with_logits(out.logits, targets))
    number = SeptetForSequenceClassification(tiny(num_labels=1)).eval()
    out = number(ids, attention_mask=mask, labels=torch.tensor([0.5, 1, 2, 3]))
    torch.testing.assert_close(out.loss, functional.mse_loss(out.logits[:, 0], torch.tensor([0.5, 1, 2, 3])))

    tags = SeptetForTokenClassification(tiny(num_labels=300)).eval()
    out = tags(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))

    spans = SeptetForQuestionAnswering(tiny()).eval()
    first, last = torch.tensor([1, 2, 3, 99]), torch.tensor([4, 5, 6, 99])  # 99: past the end, ignored
    out = spans(ids, attention_mask=mask, start_positions=first, end_positions=last)
    wanted = functional.cross_entropy(out.start_logits[:3], first[:3]) + functional.cross_entropy(
        out.end_logits[:3], last[:3]
    )
    torch.testing.assert_close(out.loss, wanted / 2)


def test_exact_matches_stand_on_both_sides_of_the_first_separator() -> None:
    sep, pad = 5, 0
    ids = torch.tensor([[2, 20, 21, 22, sep, 21, 30, 22, 21, sep, 20, pad], [2, 20, sep, 20, pad, pad, *[pad] * 6]])
    matches = exact_matches(ids, sep, (ids != pad).long())
    assert matches.tolist() == [[0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, *[0] * 6]]
    assert exact_matches(torch.tensor([[20, 21, 20]]), sep).sum() == 0  # one text alone
    left = torch.cat([torch.full((2, 3), 21), ids], 1)  # what is masked counts for nothing, whatever stands there
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), (ids != pad).long()], 1)
    assert torch.equal(exact_matches(left, sep, mask)[:, 3:], matches)


def test_a_question_answering_head_is_told_of_exact_matches() -> None:
    torch.manual_seed(0)
    plain = SeptetForQuestionAnswering(tiny(attention_mode="bidirectional")).eval()
    told = SeptetForQuestionAnswering(
        tiny(attention_mode="bidirectional", exact_match_embedding=True, sep_token_id=5)
    ).eval()
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["match_embeddings.weight"], [])
    ids = torch.tensor([[2, 20, 21, 5, 40, 21, 41], [2, 20, 22, 5, 40, 21, 41]])
    torch.testing.assert_close(told(ids).start_logits, plain(ids).start_logits)  # as if there were none, at the start
    told(ids, start_positions=torch.tensor([5, 4]), end_positions=torch.tensor([5, 4])).loss.backward()
    assert (told.match_embeddings.weight.grad.abs().sum(-1) > 0).all()
    with torch.no_grad():
        told.match_embeddings.weight[1] = 1.0
    changed = (told(ids).start_logits - plain(ids).start_logits).abs().sum(-1)
    assert changed[0] > 1e-3 and changed[1] < 1e-6  # the second question shares nothing with its context
    with pytest.raises(ValueError, match="give input_ids, not inputs_embeds"):
        told(inputs_embeds=told.model.embed_tokens(ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_padding_does_not_change_a_classification(pooling: str, side: str) -> None:
    torch.manual_seed(0)
    model = SeptetForSequenceClassification(tiny(classifier_pooling=pooling, attention_mode="bidirectional")).eval()
    ids = random_ids(1, 9)
    padding = torch.zeros(1, 5, dtype=torch.long)
    padded = torch.cat([ids, padding] if side == "right" else [padding, ids], 1)
    expected = model(ids).logits
    torch.testing.assert_close(model(padded, attention_mask=(padded > 0).long()).logits, expected, rtol=0, atol=1e-5)


def test_first_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    for hidden, heads in ((64, 4), (512, 8)):
        config = SeptetConfig(
            vocab_size=2048, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads, max_position_embeddings=64,
        )  # fmt: skip
        ids = torch.randint(0, 2048, (4, 64))
        loss = SeptetForCausalLM(config)(ids, labels=ids).loss.item()
        assert abs(loss / math.log(2048) - 1) < 0.02


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [("tiny", 512, 0.107), ("nano", 4096, 2.361), ("small", 10_000, 20.856), ("base", 65_536, 125.850),
     ("1b", 65_536, 1140.940), ("7b", 65_536, 7113.814)],
)  # fmt: skip
def test_presets_have_the_stated_size(name: str, vocab_size: int, millions: float) -> None:
    with torch.device("meta"):
        model = SeptetForCausalLM(preset_config(name, vocab_size=vocab_size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
