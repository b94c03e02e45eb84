"""SNIP, GraSP and SynFlow against finite differences, explicit Hessians and products of matrices."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from baseline_samples import cross_entropy, find, network, task
from winnow.errors import InputError
from winnow.train.examples import Examples
from winnow.train.saliency.saliency import grasp, snip
from winnow.train.saliency.synflow import Flow, synflow_masks
from winnow.train.task.run import Run
from winnow.train.task.training import Training
from winnow.train.task_loss import TaskLoss


def mlp(sizes=(10, 7, 6, 4), act=nn.Tanh, dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1]).to(dtype)


class Attending(nn.Module):
    """Two blocks of self-attention on rows of numbers, read off by a head."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)
        self.to(dtype)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def sequences() -> Examples:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, 3, generator=generator, dtype=torch.float64)
    return Examples([(x, torch.arange(8) % 3)], 4)


def loss_of(run: Run, weights: dict[str, torch.Tensor], batch, temperature: float = 1.0) -> torch.Tensor:
    return F.cross_entropy(functional_call(run.model, weights, (batch[0],)) / temperature, batch[1])


def whole(run: Run):
    (_, batch), *_ = run.training.examples.all()
    return batch


def test_snip_is_the_derivative_to_a_factor_on_each_weight():
    run = Run(task(mlp(), rows=24, size=24))
    found, batch, step = snip(run), whole(run), 1e-5
    for name, scores in found.items():
        weight = run.model.get_parameter(name)
        for i, j in [(0, 0), (1, 3), (2, 5), (5, 6)]:
            moved = []
            for factor in (1 + step, 1 - step):
                changed = weight.detach().clone()
                changed[i, j] *= factor
                moved.append(float(loss_of(run, {name: changed}, batch).detach()))
            assert float(scores[i, j]) == pytest.approx(abs(moved[0] - moved[1]) / (2 * step), rel=1e-5, abs=1e-10)


def test_snip_averages_gradients_over_mini_batches():
    run = Run(task(mlp(), rows=24, size=8))
    found, batch = snip(run, 3), whole(Run(task(mlp(), rows=24, size=24)))  # three mini-batches of equal size: an epoch
    gradient = torch.autograd.grad(cross_entropy(run.model, batch), [run.model.get_parameter(n) for n in found])
    for (name, scores), g in zip(found.items(), gradient):
        torch.testing.assert_close(scores, (run.model.get_parameter(name).detach() * g).abs())
    assert (run.cost.extra, run.cost.main, run.cost.weighted) == (3, 0, 3.0)


def test_grasp_is_weight_times_hessian_times_gradient():
    run = Run(task(mlp((10, 5, 4, 4)), rows=16, size=16))
    batch = whole(run)
    names = list(run.scope.prunables)
    shapes = [run.model.get_parameter(n).shape for n in names]
    flat = torch.cat([run.model.get_parameter(n).detach().flatten() for n in names])

    for temperature in (1.0, 200.0):

        def loss(vector, temperature=temperature):
            parts = vector.split([s.numel() for s in shapes])
            return loss_of(run, {n: p.reshape(s) for n, p, s in zip(names, parts, shapes)}, batch, temperature)

        hessian = torch.autograd.functional.hessian(loss, flat)
        gradient = torch.autograd.functional.jacobian(loss, flat)
        expected = flat * (hessian @ gradient)
        found = torch.cat([s.flatten() for s in grasp(run, 1, temperature).values()])
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-18)
    assert run.cost.extra == 6
    assert all(p.grad is None for p in run.model.parameters())


def test_grasp_predicts_what_the_gradient_flow_loses():
    # first order: |g|^2 changes by -2 w (H g) when a weight goes; halving a small weight shows it
    run = Run(task(mlp((10, 5, 4, 4)), rows=16, size=16))
    batch, found = whole(run), grasp(run, 1, 1.0)
    names = list(found)

    def flow(changed: dict[str, torch.Tensor]) -> float:
        weights = {n: run.model.get_parameter(n).detach() for n in names} | changed
        weights = {n: w.requires_grad_() for n, w in weights.items()}
        return sum(
            float(g.square().sum()) for g in torch.autograd.grad(loss_of(run, weights, batch), list(weights.values()))
        )

    before, part = flow({}), 1e-4
    for name, scores in found.items():
        weight = run.model.get_parameter(name).detach().clone()
        weight[1, 2] *= 1 - part
        assert (flow({name: weight}) - before) / part == pytest.approx(-2 * float(scores[1, 2]), rel=1e-2, abs=1e-9)


def test_grasp_goes_through_attention():
    run = Run(Training(Attending(), sequences(), cross_entropy, steps=2))
    found = grasp(run, 2, 1.0)
    name = "blocks.0.self_attn.in_proj_weight"
    weights = {n: run.model.get_parameter(n).detach() for n in found}
    batches = [b for _, b in sequences().all()]

    def slopes(moved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        leaves = {n: w.clone().requires_grad_() for n, w in moved.items()}
        loss = sum(loss_of(run, leaves, b) for b in batches) / len(batches)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

    g, step = slopes(weights), 1e-5
    ahead = slopes({n: w + step * g[n] for n, w in weights.items()})
    behind = slopes({n: w - step * g[n] for n, w in weights.items()})
    expected = weights[name] * (ahead[name] - behind[name]) / (2 * step)
    torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-9)
    assert float(found[name].abs().min()) < float(found[name].abs().max())


class Convolved(nn.Module):
    def __init__(self, end) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv1d(1, 4, 3), end

    def forward(self, x):
        return self.end(self.conv(x[:, None]))


@pytest.mark.parametrize(
    ("end", "loss", "said"),
    [
        (lambda h: {"scores": h.mean(2)}, lambda m, b: m(b[0])["scores"].square().mean(), "set temperature to 1"),
        # a log-softmax that is divided only scales the loss: the temperature would do nothing and nobody would know
        (lambda h: F.log_softmax(h.amax(2), 1), lambda m, b: F.nll_loss(m(b[0]), b[1]), "let the model return them"),
    ],
)
def test_grasp_refuses_outputs_without_logits_or_a_head(end, loss, said):
    training = Training(Convolved(end), task().examples, loss, steps=1, include=("conv.weight",))
    with pytest.raises(InputError, match=said):
        grasp(Run(training))
    assert grasp(Run(training), 1, 1.0)["conv.weight"].shape == (4, 3)


class Reading(Attending):
    """:class:`Attending` with an end of its own behind the head."""

    def __init__(self, end, dtype=torch.float64) -> None:
        super().__init__(dtype)
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


def image_classifier() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    from winnow.train.task.clip import clip_image_classifier

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 48}
    config = transformers.CLIPConfig(
        text_config=text | {"pad_token_id": 49},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    tokens = [torch.tensor([[48, i + 1, 49]]) for i in range(3)]
    model = clip_image_classifier(transformers.CLIPModel(config), tokens, ["a", "b", "c"])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def same_scores(training: Training, by_hand) -> None:
    """GraSP's at temperature 200 and those of a loss that divides the logits itself; at 1 they are others."""
    found, plain = grasp(Run(training), 2), grasp(Run(training), 2, 1.0)
    expected = grasp(Run(training.replaced(loss=by_hand)), 2, 1.0)
    assert list(found) == list(expected)
    for name, scores in found.items():
        torch.testing.assert_close(scores, expected[name], rtol=1e-7, atol=1e-9 * float(expected[name].abs().max()))
    one, other = (torch.cat([s.flatten() for s in scores.values()]) for scores in (found, plain))
    # the temperature changes more than the scale of the scores
    assert abs(float(F.cosine_similarity(one, other, dim=0))) < 0.99


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["task", "own"])
def test_grasps_temperature_divides_the_logits_of_an_image_classifier(kind):
    # behind CLIP's projection comes a normalization, which undoes every factor: the logits themselves are divided
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    loss = TaskLoss("classes") if kind == "task" else cross_entropy
    training = Training(image_classifier(), Examples([(x, torch.arange(8) % 3)], 4), loss, steps=2)
    precise = kind == "own"  # TaskLoss takes logits as float32

    def by_hand(model, batch):
        logits = model(batch[0]) / 200
        return F.cross_entropy(logits if precise else logits.float(), batch[1])

    assert any(s.name == "visual_projection.weight" and s.reason == "output head" for s in Run(training).scope.skipped)
    same_scores(training, by_hand)


@pytest.mark.parametrize("output", ["tensor", "attribute", "dict", "two calls", "sigmoid", "log_softmax", "inside"])
def test_grasps_temperature_divides_what_the_loss_is_made_of(output):
    ends = {
        "attribute": lambda z: SimpleNamespace(logits=z, loss=None), "dict": lambda z: {"logits": z, "other": None},
        "sigmoid": torch.sigmoid, "log_softmax": lambda z: F.log_softmax(z, 1),
        "inside": lambda z: SimpleNamespace(logits=z, loss=z.logsumexp(1).mean()),
    }  # fmt: skip
    read = {"attribute": lambda out: out.logits, "dict": lambda out: out["logits"]}.get(output, lambda out: out)

    def loss_at(temperature):
        def loss(model, batch):
            x, y = batch
            if output == "two calls":
                return F.cross_entropy(model(x) / temperature, y) + F.cross_entropy(model(-x) / temperature, y)
            if temperature == 1.0:
                out = read(model(x))
                if output == "sigmoid":
                    return F.binary_cross_entropy(out, F.one_hot(y, 3).double())
                if output == "log_softmax":
                    return F.nll_loss(out, y)
                return out.loss if output == "inside" else F.cross_entropy(out, y)
            logits = Attending.forward(model, x) / temperature
            if output == "sigmoid":
                return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 3).double())
            return logits.logsumexp(1).mean() if output == "inside" else F.cross_entropy(logits, y)

        return loss

    model = Reading(ends.get(output, nn.Identity()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # logits well apart, so that the temperature matters to the order
    same_scores(Training(model, sequences(), loss_at(1.0), steps=2), loss_at(200.0))


def test_scores_of_weights_the_training_freezes():
    model = mlp()
    model[0].weight.requires_grad_(False)
    run = Run(task(model))
    assert float(snip(run)["0.weight"].max()) > 0
    assert not run.model[0].weight.requires_grad


def closed_form(matrices: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """|W| times what comes in times what goes out, and R = 1' |W_L| ... |W_1| 1."""
    absolute = [np.abs(m) for m in matrices]
    scores = []
    for k, m in enumerate(absolute):
        below = np.ones(absolute[0].shape[1])
        for lower in absolute[:k]:
            below = lower @ below
        above = np.ones(absolute[-1].shape[0])
        for upper in reversed(absolute[k + 1 :]):
            above = upper.T @ above
        scores.append(m * np.outer(above, below))
    return scores, float(scores[0].sum())


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU])
def test_synflow_is_the_product_of_absolute_matrices(act):
    model = mlp(act=act, dtype=torch.float32)
    run = Run(task(model))
    found = Flow(run).scores(run.keeps)
    expected, flow = closed_form([m.weight.detach().double().numpy() for m in model if isinstance(m, nn.Linear)])
    for scores, wanted in zip(found.values(), expected):
        np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-9)
        assert float(scores.sum()) == pytest.approx(flow)  # conservation: every layer carries the whole flow


def test_synflow_through_batch_norm_convolution_and_pooling_conserves_the_flow():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.GroupNorm(1, 5), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    examples = Examples([(torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]))], 4)
    run = Run(Training(model, examples, cross_entropy, steps=1))
    sums = {n: float(s.sum()) for n, s in Flow(run).scores(run.keeps).items()}
    assert len(sums) >= 2 and all(math.isfinite(s) and s > 0 for s in sums.values())
    assert list(sums.values()) == pytest.approx([next(iter(sums.values()))] * len(sums))


def test_synflow_prunes_along_an_exponential_schedule():
    model = mlp((10, 9, 8, 4), nn.ReLU, torch.float32)
    run = Run(task(model))
    matrices = [m.weight.detach().double().numpy().copy() for m in model if isinstance(m, nn.Linear)]
    prunable = matrices[:-1]
    numel, zeros, n = sum(m.size for m in prunable), 130, 5
    gone = [np.zeros(m.shape, bool) for m in prunable]
    for k in range(1, n + 1):
        scores, _ = closed_form([*prunable, matrices[-1]])
        flat = np.concatenate([np.where(g, -1.0, s).ravel() for g, s in zip(gone, scores)])
        count = numel - round(numel * (1 - zeros / numel) ** (k / n))
        lowest = np.zeros(numel, bool)
        lowest[np.argsort(flat, kind="stable")[:count]] = True
        gone = [p.reshape(g.shape) for p, g in zip(np.split(lowest, [gone[0].size]), gone)]
        for m, g in zip(prunable, gone):
            m[g] = 0
    found = synflow_masks(run, zeros, n)
    assert sum(int((~k).sum()) for k in found.values()) == zeros
    for keep, expected in zip(found.values(), gone):
        np.testing.assert_array_equal(keep.numpy(), ~expected)
    assert run.cost.extra == n


def test_synflow_leaves_the_model_alone_and_no_layer_empty():
    model = mlp((10, 30, 4, 30, 30, 4), nn.ReLU, torch.float32)
    model.train()
    before = copy.deepcopy(model.state_dict())
    run = Run(task(model))
    masks = synflow_masks(run, round(0.97 * run.scope.numel), 30)
    assert all(
        bool(k.any()) for k in masks.values()
    )  # "maximal critical compression", which one scoring does not reach
    for state in (model.state_dict(), run.model.state_dict()):
        assert all(torch.equal(t, before[n]) for n, t in state.items())  # signs and all
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_synflow_gives_query_and_key_their_part_of_the_flow():
    run = Run(Training(Attending(torch.float32), sequences_float(), cross_entropy, steps=2))
    scores = Flow(run).scores(run.keeps)
    for block in range(2):
        query, key, value = scores[f"blocks.{block}.self_attn.in_proj_weight"].chunk(3)
        out = scores[f"blocks.{block}.self_attn.out_proj.weight"]
        for part in (query, key, value):
            assert float(part.sum()) == pytest.approx(float(out.sum()) / 3)
        up, down = (scores[f"blocks.{block}.linear{i}.weight"] for i in (1, 2))
        assert float(up.sum()) == pytest.approx(float(down.sum()))


def sequences_float() -> Examples:
    x, y = next(iter(sequences().all()))[1]
    return Examples([(x.float(), y)], 4)


def test_synflow_masks_and_modes_of_attention_agree():
    """The packed attention of torch, the fused function and a softmax written out give one score for the values."""
    from winnow.train.saliency.linearized import Linearized, _attention

    q, k, v = (torch.rand(2, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    causal = torch.full((4, 4), -math.inf, dtype=torch.float64).triu(1)
    with Linearized():
        plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        masked = F.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        written = F.softmax(q @ k.transpose(-1, -2) + causal, dim=-1) @ v
    expected = (q @ k.transpose(-1, -2)).tril()
    torch.testing.assert_close(plain, expected / expected.sum(-1, keepdim=True) @ v)
    torch.testing.assert_close(masked, plain)
    torch.testing.assert_close(written, plain)
    grouped = _attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    torch.testing.assert_close(grouped, _attention(q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)))
    degrees = [float((t * g).detach().sum()) for t, g in zip((q, k, v), torch.autograd.grad(plain.sum(), (q, k, v)))]
    assert degrees == pytest.approx([float(plain.detach().sum()) / 3] * 3)


def test_synflow_needs_a_loss_that_calls_the_model():
    training = task(mlp(dtype=torch.float32)).replaced(loss=lambda m, b: m[0](b[0]).sum())
    with pytest.raises(InputError, match="never calls the model"):
        synflow_masks(Run(training), 10, 2)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=3, **sizes))


def llama():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=2, num_labels=3, pad_token_id=0, **sizes)
    return LlamaForSequenceClassification(config)


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
    )


@pytest.mark.hf
@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_text_models(make):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = make()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1, 40, (8, 7), generator=generator),
        "attention_mask": torch.ones(8, 7, dtype=torch.long),
        "labels": torch.arange(8) % 3,
    }
    training = Training(model, Examples([batch], 4), lambda m, b: m(**b).loss, steps=2, lr=1e-3)
    run = Run(training)
    for name, scores in Flow(run).scores(run.keeps).items():
        assert bool(scores.isfinite().all()) and float(scores.min()) >= 0 and float(scores.sum()) > 0, name
    for method in ("snip", "grasp", "synflow"):
        (ticket,) = find(method, training, [0.6])
        assert ticket.masks.zeros == round(0.6 * ticket.masks.numel)
    # a head's temperature reaches the loss that is made inside the model: only the order of weights is as before
    hot, cold = (torch.cat([s.flatten() for s in grasp(run, 1, t).values()]) for t in (1e-2, 1e2))
    assert float(hot.abs().max()) > 1e3 * float(cold.abs().max())


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_tickets_by_score(method):
    training = task(network(), steps=2)
    extra = {"snip": 2, "grasp": 10, "synflow": 4}[method]  # GraSP: 10 of each of four classes, 40 / 12 mini-batches
    tickets = find(method, training, [0.3, 0.75], **({} if method == "synflow" else {"batches": 2}))
    for ticket, zeros in zip(tickets, (round(0.3 * 264), round(0.75 * 264))):
        assert ticket.masks.zeros == zeros == sum(int((m == 0).sum()) for m in weights(ticket.model))
        assert (ticket.cost.main, ticket.cost.extra, ticket.cost.look_ahead) == (2, extra, 0)
        assert ticket.cost.weighted == pytest.approx(extra + 2 * (1 - zeros / 264))
    # the mask is the one that the scores give
    run = Run(training)
    if method == "snip":
        flat = torch.cat([s.flatten() for s in snip(run, 2).values()])
        kept = torch.cat([m.unpack().flatten() for m in tickets[1].masks.values()])
        assert float(flat[kept].min()) >= float(flat[~kept].max())


def weights(model: nn.Sequential) -> list[torch.Tensor]:
    return [m.weight for m in model if isinstance(m, nn.Linear)][:-1]
