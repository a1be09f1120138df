"""What a model refuses, what it says then, and what it documents instead."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

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
    logger,
)
from septet.modeling.presets import preset_config

ROPE = {"rope_theta": 10000.0}


def tiny(**fields) -> SeptetConfig:
    return preset_config("tiny", **{"vocab_size": 300, "max_position_embeddings": 64, "pad_token_id": 0, **fields})


IDS = torch.randint(16, 300, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; must be at least 1"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, r"num_attention_heads is 6; .* num_key_value_heads \(4\)"),
        ({"head_dim": 7}, "head_dim is 7; must be even"),
        ({"head_dim": None, "hidden_size": 60, "num_attention_heads": 4}, "head_dim is 15; .*hidden_size, 60.*heads, 4"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"attention_mode": "backwards"}, "attention_mode"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"attention_dropout": 1.0}, r"attention_dropout is 1.0; must lie in \[0, 1\)"),
        ({"hidden_dropout": -0.1}, "hidden_dropout is -0.1"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0; must be above 0"),
        ({"hidden_act": "swish9"}, "hidden_act is 'swish9'; must be one of .*silu"),
        ({"pad_token_id": 300}, "pad_token_id is 300; must lie between 0 and 299"),
        ({"eos_token_id": [2, 300]}, r"eos_token_id is \[2, 300\]; must lie between 0 and 299"),
        ({"trained_heads": ["SeptetForEverything"]}, "trained_heads is 'SeptetForEverything'; each must be one of"),
        ({"exact_match_embedding": True, "sep_token_id": None}, "exact_match_embedding is True; needs sep_token_id"),
        ({"use_sliding_window": True}, "sliding_window is None; use_sliding_window needs at least 1"),
        ({"layer_types": ["full_attention"]}, "1 entries.*num_hidden_layers is 2|num_hidden_layers.*2.*1"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types is 'sliding_attention'; with these settings"),
        ({"rope_parameters": {**ROPE, "rope_type": "spiral"}}, "rope_type is 'spiral'; must be one of default, linear"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta is 0.0; must be a number above 0"),
        ({"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 0.5}}, "linear factor is 0.5; .*from 1 up"),
        (
            {"rope_parameters": {
                **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
            }},
            r"low_freq_factor is 4.0; must lie between 0 and high_freq_factor \(1.0\)",
        ),
        (
            {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 4}},
            r"beta_slow is 4; must lie between 0 and beta_fast \(1\)",
        ),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        tiny(**fields)


def test_a_configuration_changed_into_nonsense_is_not_saved(tmp_path) -> None:
    config = tiny()
    config.num_key_value_heads = 3
    with pytest.raises(Exception, match=r"num_key_value_heads \(3\)"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 10, 64)}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS.clamp(min=300)}, "input_ids run from 300 to 300; they must lie between 0 and 299"),
        ({"input_ids": IDS - 20}, "they must lie between 0 and 299"),
        ({"input_ids": IDS[:, :0]}, r"the input is empty \(2 rows of length 0\)"),
        ({"input_ids": IDS[:0]}, r"the input is empty \(0 rows of length 10\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 9)}, r"attention_mask has shape \(2, 9\); .* \(2, 10\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 10)}, r"attention_mask has shape \(1, 10\)"),
        ({"input_ids": IDS, "position_ids": torch.arange(9)[None]}, r"position_ids have shape \(1, 9\); .*\(2, 10\)"),
        ({"input_ids": IDS, "position_ids": torch.arange(10)}, r"position_ids have shape \(10,\)"),
    ],
)
def test_inputs_that_do_not_fit(call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeptetModel(tiny())(**call)


def test_a_mask_must_cover_the_cache() -> None:
    model, cache = SeptetModel(tiny()), DynamicCache()
    model(IDS, past_key_values=cache)
    with pytest.raises(ValueError, match=r"needs \(2, 11\): 1 positions after 10 in the cache"):
        model(IDS[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache)
    assert model(IDS[:, :1], torch.ones(2, 11), past_key_values=cache).last_hidden_state.shape == (2, 1, 64)


LABELS = torch.zeros(2, 10, dtype=torch.long)


@pytest.mark.parametrize(
    ("head", "fields", "call", "message"),
    [
        (SeptetForCausalLM, {}, {"labels": LABELS[:, :9]}, r"labels have shape \(2, 9\); the input needs \(2, 10\)"),
        (SeptetForCausalLM, {}, {"labels": LABELS + 300}, "labels run from 0 to 300; .* between 0 and 299, or be -100"),
        (SeptetForCausalLM, {}, {"labels": LABELS - 5}, "labels run from -5"),
        (SeptetForMaskedLM, {}, {"labels": LABELS[0]}, r"labels have shape \(10,\); the input needs \(2, 10\)"),
        (SeptetForNextSentencePrediction, {}, {"labels": LABELS[:, 0] + 2}, "labels run from .* between 0 and 1"),
        (SeptetForNextSentencePrediction, {}, {"labels": LABELS}, r"labels have shape \(20,\); the input needs \(2,\)"),
        (SeptetForPreTraining, {}, {"next_sentence_label": LABELS}, r"next_sentence_label have shape \(20,\)"),
        (SeptetForSequenceClassification, {"num_labels": 3}, {"labels": LABELS[:, 0] + 3}, "between 0 and 2"),
        (SeptetForSequenceClassification, {"num_labels": 3}, {"labels": torch.rand(2, 2)}, r"needs \(2, 3\)"),
        (SeptetForSequenceClassification, {"num_labels": 1}, {"labels": torch.rand(3)}, r"needs \(2, 1\)"),
        (SeptetForTokenClassification, {"num_labels": 3}, {"labels": LABELS + 3}, "between 0 and 2, or be -100"),
        (
            SeptetForQuestionAnswering, {},
            {"start_positions": LABELS[:, :2], "end_positions": LABELS[:, 0]}, r"start_positions have shape \(4,\)",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("skip_logits", [False, True])
def test_labels_that_do_not_fit(head, fields: dict, call: dict, message: str, skip_logits: bool) -> None:
    options = {"skip_logits": True} if skip_logits and head in (SeptetForCausalLM, SeptetForMaskedLM) else {}
    with pytest.raises(ValueError, match=message):
        head(tiny(**fields))(IDS, **call, **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_a_row_of_padding_alone_is_finite_and_disturbs_nobody(attention: str, mode: str) -> None:
    torch.manual_seed(0)
    model = SeptetForSequenceClassification._from_config(
        tiny(attention_mode=mode, num_labels=3), attn_implementation=attention
    ).eval()
    mask = torch.ones_like(IDS)
    mask[1] = 0
    found, alone = model(IDS, attention_mask=mask).logits, model(IDS[:1]).logits
    assert found.isfinite().all()
    torch.testing.assert_close(found[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("skip_logits", [False, True])
def test_no_targets_are_a_loss_of_nothing(skip_logits: bool) -> None:
    model = SeptetForCausalLM(tiny())
    untargeted = model(IDS, labels=torch.full_like(IDS, -100), skip_logits=skip_logits).loss
    untargeted.backward()
    assert untargeted == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_positions_beyond_the_trained_range_warn(caplog) -> None:
    logger.warning_once.cache_clear()
    logger.propagate = True
    model = SeptetModel(tiny(max_position_embeddings=8))
    with caplog.at_level("WARNING"):
        model(IDS[:, :8])
        assert not caplog.records
        model(IDS)
    assert "position 9 lies beyond max_position_embeddings (8)" in caplog.text
