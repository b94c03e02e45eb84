"""Models whose units are coupled in ways that are easily got wrong."""

from __future__ import annotations

import copy

import torch
from torch import nn

from winnow.coupled.unit import unit_masks, zero_biases
from winnow.masks.prunable import Scope


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Residual(8, 6), Residual(8, 5), Residual(8, 7, 2, 12))
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc(self.blocks(x).add_(1).mean((2, 3)))  # written over in place, as code without gradients may


class Mobile(nn.Module):
    """Inverted residual with a depthwise convolution and squeeze-excitation."""

    def __init__(self, width: int = 6, inner: int = 12) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.n1 = nn.BatchNorm2d(inner)
        self.depth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.n2 = nn.BatchNorm2d(inner)
        self.squeeze = nn.Conv2d(inner, 4, 1)
        self.excite = nn.Conv2d(4, inner, 1)
        self.project = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x):
        y = nn.functional.silu(self.n2(self.depth(nn.functional.relu6(self.n1(self.expand(x))))))
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.project(y * gate)


def stir(model: nn.Module) -> nn.Module:
    """Norms and biases away from their trivial start, so that forgetting them shows."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.eval()


def zeroed(model: nn.Module, units, chosen, scope: Scope, deltas=None) -> nn.Module:
    pruned = copy.deepcopy(model)
    state = pruned.state_dict()
    for name, keep in unit_masks(units, chosen, scope).items():
        p = scope.prunables[name]
        state[name].copy_(p.restore(p.matrix(state[name]) * keep))
    for name, value in zero_biases(units, chosen, model).items():
        state[name].copy_(value)
    for name, delta in (deltas or {}).items():
        if delta is not None:
            state[name] += delta.view(state[name].shape).to(state[name].dtype)
    return pruned


class Residual(nn.Module):
    """Inner channels are free; the trunk is shared through the addition."""

    def __init__(self, width: int, inner: int, stride: int = 1, out: int | None = None) -> None:
        super().__init__()
        out = out or width
        self.conv1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        same = out == width and stride == 1
        self.down = nn.Identity() if same else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class PlainCNN(nn.Sequential):
    def __init__(self, a: int = 6, b: int = 7, c: int = 5) -> None:
        super().__init__(
            nn.Conv2d(3, a, 3),
            nn.BatchNorm2d(a),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(b, c, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(c * 36, 10),
        )
