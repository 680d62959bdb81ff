"""Chunked log-probs against full logits in float64, and the memory they must not take."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grmlight.models import LogitTransform, Signal, logprobs, token_logps
from tests.models.groups import mixed_groups, starts
from tests.models.plain import plain_copy, plain_outputs
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_reward_model

TRANSFORMS = {
    "plain": LogitTransform(),
    "softcap": LogitTransform(softcap=3.0),
    "scale": LogitTransform(scale=0.25),
    "both": LogitTransform(scale=4.0, softcap=2.5),
}


def full_logits(hidden_LH, weight_VH, bias_V, target_L, transform):
    """The formula, with every logit at once."""
    logits = hidden_LH @ weight_VH.T
    if bias_V is not None:
        logits = logits + bias_V
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(dim=-1)[torch.arange(len(target_L)), target_L]


@pytest.mark.parametrize("kept", [False, True], ids=["made again", "kept"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_values_and_gradients_are_those_of_full_logits_in_float64(monkeypatch, transform, bias, frozen, kept):
    monkeypatch.setattr(logprobs, "chunk_elements", lambda device: 50 * 37 - (not kept))
    monkeypatch.setattr(logprobs, "chunk_rows", lambda vocabulary, device: 16)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in [(50, 8), (37, 8), (37,)]]
    target_L = torch.randint(37, (50,), generator=generator)
    grad_L = torch.randn(50, generator=generator)
    results = []
    for function, dtype in [(token_logps, torch.float32), (full_logits, torch.float64)]:
        hidden, weight, offset = (tensor.to(dtype, copy=True).requires_grad_(not frozen) for tensor in inputs)
        hidden.requires_grad_()
        logps = function(hidden, weight, offset if bias else None, target_L, transform)
        logps.backward(grad_L.to(logps.dtype))
        learned = [weight.grad, *([offset.grad] if bias else [])]
        results.append([logps, hidden.grad, *([] if frozen else learned)])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == torch.float32
        assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(not hasattr(functional, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_s_own_chunked_loss_gives_the_same(dtype):
    inputs = [torch.randn(700, 24), torch.randn(53, 24) * 0.2]
    target_L, grad_L = torch.randint(53, (700,)), torch.rand(700)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)
    results = []
    for ours in (True, False):
        hidden, weight = (tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs)
        if ours:
            logps = token_logps(hidden, weight, None, target_L, LogitTransform())
        else:
            logps = -functional.linear_cross_entropy(hidden, weight, target_L, reduction="none", options=options)
        (logps.float() * grad_L).sum().backward()
        results.append([logps.float(), hidden.grad.float(), weight.grad.float()])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("trained", "kept", "products"), [(True, False, 4), (True, True, 3), (False, False, 2)])
def test_products_with_the_vocabulary(trained, kept, products, monkeypatch):
    """Logits, their repetition unless kept, and two gradients for a head that learns; one gradient for a frozen one."""
    monkeypatch.setattr(logprobs, "chunk_rows", lambda vocabulary, device: 64)
    monkeypatch.setattr(logprobs, "chunk_elements", lambda device: 40 * 64 - (not kept))
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(64, 8, requires_grad=trained)
    with Products() as counter:
        token_logps(hidden, weight, None, torch.arange(40), LogitTransform()).sum().backward()
    assert counter.count == products


def test_a_second_backward_finds_what_it_needs():
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    logps = token_logps(hidden, weight, None, torch.arange(40), LogitTransform()).sum()
    first = torch.autograd.grad(logps, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(logps, (hidden, weight))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradients_that_are_needed(frozen):
    hidden, weight = torch.randn(5, 4), torch.randn(7, 4)
    trained = weight if frozen == "hidden" else hidden
    trained.requires_grad_()
    token_logps(hidden, weight, None, torch.arange(5), LogitTransform()).sum().backward()
    assert trained.grad is not None
    assert (weight if trained is hidden else hidden).grad is None


@pytest.mark.parametrize(
    ("architecture", "entries"),
    [
        ("gemma2", {}),
        ("llama", {"model_type": "granite", "logits_scaling": 5.0}),
        ("llama", {"model_type": "cohere", "logit_scale": 0.3}),
    ],
    ids=["gemma2", "granite", "cohere"],
)
def test_the_models_own_transform(architecture, entries):
    model = tiny_reward_model(architecture, config=entries)
    assert LogitTransform.of(model.lm.config) != LogitTransform()
    groups = mixed_groups()
    _, expected = plain_outputs(plain_copy(model), groups, starts(groups))
    logps = model(pack_groups(groups), frozenset({Signal.LOGPS})).logps_N
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)


class Watch(TorchDispatchMode):
    """Notes the most rows of any tensor that is a vocabulary wide."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows, self.elements = vocabulary, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                if leaf.dim() > 0 and leaf.shape[-1] == self.vocabulary:
                    self.rows = max(self.rows, leaf.numel() // self.vocabulary)
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("signal", [Signal.CHOSEN_LOGPS, Signal.LOGPS])
def test_full_logits_never_exist(signal):
    vocabulary, length = 256_000, 600
    model = tiny_reward_model(config={"vocab_size": vocabulary, "max_position_embeddings": 1024})
    prompt = list(range(3, 23))
    batch = pack_groups([[prompt + [30] * length, prompt + [31] * length]])
    with Watch(vocabulary) as watch:
        outputs = model(batch, frozenset({signal}))
        (outputs.rewards_N.sum() + outputs.logps_N[batch.better_C].sum()).backward()
    chunk = logprobs.chunk_rows(vocabulary, "cpu")
    assert chunk < length / 4
    # The transposed weight and its gradient are a vocabulary wide, too, and hold one row for each hidden unit.
    assert 0 < watch.rows <= max(chunk, model.lm.config.hidden_size)
    assert watch.elements < length * vocabulary
