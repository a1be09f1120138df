"""The worked examples of docs/textbook.md and textbook.zh.md, through the model's own parts.

The numbers are read out of both pages: every matrix of their formulas and text blocks, and every code span that is a
number or a list of numbers. What a page says and what the code computes cannot drift apart.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from septet.modeling.configuration_septet import SeptetConfig
from septet.modeling.modeling_septet import (
    SeptetAttention,
    SeptetDecoderLayer,
    SeptetForCausalLM,
    SeptetMLP,
    SeptetModel,
    SeptetRMSNorm,
    eager_attention_forward,
    septet_mask,
)
from septet.tasks.harness.metrics import class_table, score

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("textbook.md", "textbook.zh.md")

# The article's own matrices: one word, or one hidden state, a row.
WORDS = ("101", "010", "110", "001", "111", "011", "101", "111", "001", "110")
EMBEDDINGS = tensor([[float(digit) for digit in word] for word in WORDS])
INDICES = tensor([2, 5, 7])
QUERIES = tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0]])  # K = Q
VALUES = tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 1]])
X = tensor([[1.0, 0, 1]])
W1, B1 = tensor([[1.0, 0], [0, 1], [1, 1]]), tensor([0.0, 0, 0])
W2, B2 = tensor([[1.0, 1], [0, 0], [1, 0]]), tensor([0.0, 1, 0])
# ... and the results that it prints.
PRINTED_EMBEDDING = tensor([[1.0, 1, 0], [0, 1, 1], [1, 1, 1]])
PRINTED_ATTENTION = tensor([0.5, 0.5, 0])
PRINTED_FEED_FORWARD = torch.ones(2, 2)
PRINTED_RESIDUAL = tensor([[2.0, 1, 2]])


def septet(**fields) -> SeptetConfig:
    """The examples' shape: ten words, width 3, two hidden units."""
    shape = {"vocab_size": 10, "hidden_size": 3, "intermediate_size": 2, "num_hidden_layers": 1, "qk_norm": False}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    return SeptetConfig(**{**shape, **heads, **fields})


def article_feed_forward() -> nn.Sequential:
    """max(0, X W_1 + b_1) W_2^T + b_2; `nn.Linear` keeps its weight as (out, in), which is how the article prints W_2."""
    first, second = nn.Linear(3, 2), nn.Linear(2, 3)
    first.load_state_dict({"weight": W1.T, "bias": B1[:2]})
    second.load_state_dict({"weight": W2, "bias": B2})
    return nn.Sequential(first, nn.ReLU(), second)


def gated(mlp: SeptetMLP) -> SeptetMLP:
    """Septet's feed-forward with the article's weights and the gate's second factor equal to x_1, which is 1 for X."""
    mlp.load_state_dict(
        {"gate_proj.weight": W1.T, "up_proj.weight": tensor([[1.0, 0, 0], [1, 0, 0]]), "down_proj.weight": W2}
    )
    return mlp


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- each section's numbers, by the name that they have on the pages ---------------------------------------------------


def embedding() -> dict[str, Tensor]:
    model = SeptetModel(septet())
    model.embed_tokens.load_state_dict({"weight": EMBEDDINGS})
    from_zero, from_one = model.embed_tokens(INDICES), model.embed_tokens(INDICES - 1)
    assert torch.equal(functional.one_hot(INDICES, 10).float() @ EMBEDDINGS, from_zero)
    assert torch.equal(from_zero, PRINTED_EMBEDDING)
    assert len(EMBEDDINGS.unique(dim=0)) == 6  # ten words, six vectors: 0 and 6 cannot be told apart
    assert torch.equal(EMBEDDINGS[0], EMBEDDINGS[6])
    return {
        "W_E[2], W_E[5], W_E[7]": from_zero,
        "W_E[1], W_E[4], W_E[6]": from_one,
        "(W_E (2, 5, 7)^T)^T": (EMBEDDINGS @ INDICES.float())[None],
    }


def attend(attention: str, causal: bool, queries: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """The article's example through one of the model's attention functions: output and, from eager, weights."""
    config = septet()
    config._attn_implementation = attention
    function = ALL_ATTENTION_FUNCTIONS.get_interface(attention, eager_attention_forward)
    mask = septet_mask(config, queries[None], None, None, causal)["full_attention"]
    query, value = queries[None, None], values[None, None]  # (B, N, T, D)
    module = SeptetAttention(config, 0).eval()
    output, weights = function(module, query, query, value, mask, scaling=3**-0.5, is_causal=causal)
    return output[0, :, 0], None if weights is None else weights[0, 0]


def attention() -> dict[str, Tensor]:
    scores = QUERIES @ QUERIES.T
    output, weights = attend("eager", False, QUERIES, VALUES)
    causal_output, causal_weights = attend("eager", True, QUERIES, VALUES)
    for causal, expected in ((False, output), (True, causal_output)):
        torch.testing.assert_close(attend("sdpa", causal, QUERIES, VALUES)[0], expected)
    # Without positions attention does not see the order of the words: another order in, the same rows out.
    order = [2, 0, 1]
    torch.testing.assert_close(attend("eager", False, QUERIES[order], VALUES[order])[0], output[order])
    return {
        "Q K^T": scores,
        "Q K^T / sqrt(3)": scores / 3**0.5,
        "softmax(Q K^T / sqrt(3))": weights,
        "softmax(Q K^T / sqrt(3)) V": output,
        "softmax(Q K^T / sqrt(3) + M)": causal_weights,
        "softmax(Q K^T / sqrt(3) + M) V": causal_output,
        "softmax(q_1 K)": functional.softmax(QUERIES[:1] @ QUERIES, -1),
        "softmax(q_1 K^T)": functional.softmax(scores[:1], -1),
        "(0.5, 0.5, 0) V": (PRINTED_ATTENTION @ VALUES)[None],
        "W_V": torch.linalg.solve(QUERIES, VALUES),
    }


def feed_forward() -> dict[str, Tensor]:
    with pytest.raises(RuntimeError, match="must match"):
        X @ W1 + B1  # b_1 as a row of three
    hidden = functional.relu(X @ W1 + B1[:, None])  # b_1 as the column that is printed: broadcast, silently
    assert hidden.shape == (3, 2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        hidden @ W2
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        functional.relu(X @ W1) @ W2
    output = article_feed_forward()(X)
    relu, silu = (gated(SeptetMLP(septet(hidden_act=name)))(X) for name in ("relu", "silu"))
    torch.testing.assert_close(relu + B2, output)
    return {
        "X W_1 + b_1": X @ W1 + B1[:2],
        "max(0, X W_1 + b_1) W_2^T + b_2": output,
        "max(0, X W_1 + b_1) W_2[:2] + b_2[:2]": functional.relu(X @ W1) @ W2[:2] + B2[:2],
        "W_down (ReLU(W_gate x) * W_up x)": relu,
        "W_down (SiLU(W_gate x) * W_up x)": silu,
    }


def residual() -> dict[str, Tensor]:
    with pytest.raises(RuntimeError, match="must match"):
        X + PRINTED_FEED_FORWARD
    assert torch.equal(X + torch.ones(3), PRINTED_RESIDUAL)
    model = SeptetModel(septet())
    positions = model.rotary_emb(X[None], tensor([[0]]))

    def block(mlp: nn.Module, norm: nn.Module) -> Tensor:
        """A decoder layer whose attention branch is silent, so that X reaches the feed-forward branch as it is."""
        layer = SeptetDecoderLayer(septet(), 0).eval()
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp, layer.post_attention_layernorm = mlp, norm
        return layer(X[None], position_embeddings=positions)[0]

    relu, silu = (gated(SeptetMLP(septet(hidden_act=name))) for name in ("relu", "silu"))
    return {
        "X + FFN(X)": block(article_feed_forward(), nn.Identity()),
        "x + MLP(x), ReLU": block(relu, nn.Identity()),
        "x + MLP(x), SiLU": block(silu, nn.Identity()),
        "x + MLP(RMSNorm(x)), SiLU": block(silu, SeptetRMSNorm(3)),
    }


def elsewhere() -> dict[str, Tensor]:
    predictions = ["yes"] * 10 + ["no"] * 90
    references = ["yes"] * 8 + ["no"] * 2 + ["yes"] * 8 + ["no"] * 82
    accuracy = score("classification", predictions, references, "en")["accuracy"]
    yes = next(row for row in class_table(predictions, references) if row["label"] == "yes")
    with torch.device("meta"):
        parts = nn.Embedding(10000, 512), nn.TransformerEncoderLayer(512, 8, 1024), nn.Linear(512, 10000)
    counts = [parameters(part) for part in parts]
    counts[1] *= 6
    return {
        "LayerNorm(x)": functional.layer_norm(X, (3,)),
        "RMSNorm(x)": SeptetRMSNorm(3)(X),
        "accuracy, precision, recall, F1 (TP 8, FP 2, FN 8, TN 82)": tensor(
            [[accuracy, yes["precision"], yes["recall"], yes["f1"]]]
        ),
        "embedding + 6 blocks + output = parameters": tensor([[*counts, sum(counts)]], dtype=torch.float64),
    }


SECTIONS = (embedding, attention, feed_forward, residual, elsewhere)


# ---- the pages --------------------------------------------------------------------------------------------------------


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def text_blocks(page: str) -> str:
    return "\n".join(re.findall(r"```text\n(.*?)```", read(page), re.DOTALL))


def matrices(page: str) -> dict[str, Tensor]:
    """The matrices of the page's text blocks: a line with the name, then the rows, then an empty line."""
    named = (paragraph.strip().split("\n") for paragraph in text_blocks(page).strip().split("\n\n"))
    return {
        name: tensor([[float(x) for x in row.split()] for row in rows], dtype=torch.float64) for name, *rows in named
    }


def spans(page: str) -> list:
    """The code spans that are a number or a list of numbers, in their order."""
    prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    return [json.loads(span) for span in re.findall(r"`([^`]+)`", prose) if re.fullmatch(r"[-\d.,\[\] ]+", span)]


def inputs(page: str) -> list[Tensor]:
    """The matrices of the page's formulas, in their order."""
    bodies = re.findall(r"\\begin{bmatrix}(.*?)\\end{bmatrix}", read(page))
    return [tensor([[float(x) for x in row.split("&")] for row in body.split(r"\\")]) for body in bodies]


def rounded(value: Tensor) -> list:
    return value.double().round(decimals=4).tolist()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
@pytest.mark.parametrize("page", PAGES)
@torch.no_grad()
def test_the_pages_numbers_are_the_models(page: str, section) -> None:
    printed = matrices(page)
    for name, value in section().items():
        torch.testing.assert_close(
            printed[name], value.double(), rtol=0, atol=5.1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("page", PAGES)
@torch.no_grad()
def test_numbers_in_tables_and_prose(page: str) -> None:
    attended = attention()
    with torch.device("meta"):
        seven_billion = parameters(SeptetForCausalLM(SeptetConfig()))
    listed = elsewhere()["embedding + 6 blocks + output = parameters"][0, -1]
    error, words = 0.1, 10_000  # Fano: H(word | prediction) <= H(error) + error log2(words - 1)
    fano = -error * math.log2(error) - (1 - error) * math.log2(1 - error) + error * math.log2(words - 1)
    assert fano < 0.6 * (4.5 + 1)  # Shannon's lower bound a letter, over a word and its space
    assert spans(page) == [
        rounded(PRINTED_EMBEDDING),
        rounded(embedding()["W_E[2], W_E[5], W_E[7]"]),
        rounded(PRINTED_ATTENTION),
        rounded(attended["softmax(Q K^T / sqrt(3)) V"]),
        rounded(PRINTED_FEED_FORWARD),
        rounded(feed_forward()["max(0, X W_1 + b_1) W_2^T + b_2"][0]),
        rounded(PRINTED_RESIDUAL[0]),
        rounded(residual()["X + FFN(X)"][0]),
        seven_billion,
        int(listed),
        round(seven_billion / int(listed)),
        # how much of the first word's weight lies on later words
        round(float(attended["softmax(Q K^T / sqrt(3))"][0, 1:].sum()), 4),
        round(fano, 4),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_the_formulas_matrices_are_the_articles(page: str) -> None:
    expected = [EMBEDDINGS.T, QUERIES, VALUES, X, W1, W2]
    assert [matrix.tolist() for matrix in inputs(page)] == [matrix.tolist() for matrix in expected]


def test_both_pages_print_the_same_and_nothing_unchecked() -> None:
    english, chinese = (text_blocks(page) for page in PAGES)
    assert english == chinese
    with torch.no_grad():
        assert set(matrices(PAGES[0])) == {name for section in SECTIONS for name in section()}
