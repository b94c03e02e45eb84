"""What plain hooks see of a walk over a model."""

from __future__ import annotations

import torch
from torch import nn

from winnow.forward.batch import call as call_model
from winnow.masks.scope import find_scope


def reference(family, model, batches):
    """{prunable: [tokens, sum, gram] a part} in float64 from plain hooks on the dense model."""
    scope = find_scope(model)
    inputs: dict[str, list[list[torch.Tensor]]] = {
        name: [[] for _ in range(p.parts)] for name, p in scope.prunables.items()
    }
    batch = None
    handles = []

    def linear(name):
        def hook(module, args):
            x, keep = args[0], tokens_of(family, name, batch, getattr(model, "batch_first", True))
            x = x.reshape(-1, x.shape[-1])
            inputs[name + ".weight"][0].append(x if keep is None else x[keep])

        return hook

    def conv(name):
        def hook(module, args):
            x = args[0]
            pad = [
                p for k, d in reversed(list(zip(module.kernel_size, module.dilation))) for p in [d * (k - 1) // 2] * 2
            ]
            if module.padding != "same":
                pad = [p for size in reversed(module.padding) for p in (size, size)]
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = nn.functional.pad(x, pad, mode=mode)
            x = nn.functional.unfold(x, module.kernel_size, module.dilation, 0, module.stride)  # [B, C*k, L]
            for g, part in enumerate(x.chunk(module.groups, 1)):
                inputs[name + ".weight"][g].append(part.transpose(1, 2).flatten(0, 1))

        return hook

    def attention(name):
        def hook(module, args, kwargs):
            x = args[0]
            if not module.batch_first:
                x = x.transpose(0, 1)
            x = x.reshape(-1, x.shape[-1])[tokens_of(family, name, batch)]
            for part in range(3):
                inputs[name + ".in_proj_weight"][part].append(x)
            # what the output projection reads, written out
            q, k, v = nn.functional.linear(args[0], module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
            if not module.batch_first:
                q, k, v = (t.transpose(0, 1) for t in (q, k, v))
            q, k, v = (t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            scores = scores.masked_fill(batch["src_key_padding_mask"][:, None, None], float("-inf"))
            y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            y = y.reshape(-1, y.shape[-1])[tokens_of(family, name, batch)]
            inputs[name + ".out_proj.weight"][0].append(y)

        return hook

    def experts(name):
        def hook(module, args):
            hidden, index, _ = args
            keep = tokens_of(family, name, batch)
            flipped = scope.prunables[name + ".down_proj"].transposed
            for e in range(module.gate_up_proj.shape[0]):
                x = hidden[keep][(index[keep] == e).any(-1)]
                inputs[name + ".gate_up_proj"][e].append(x)
                weight = module.gate_up_proj[e]
                y = x @ (weight if flipped else weight.t())
                if flipped:
                    y = module._apply_gate(y + module.gate_up_proj_bias[e])
                else:
                    gate, up = y.chunk(2, -1)
                    y = module.act_fn(gate) * up
                inputs[name + ".down_proj"][e].append(y)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_pre_hook(attention(name), with_kwargs=True))
        elif name + ".gate_up_proj" in scope.prunables:
            handles.append(module.register_forward_pre_hook(experts(name)))
        elif name + ".weight" in scope.prunables and not name.endswith("out_proj.weight"):
            handles.append(
                module.register_forward_pre_hook(conv(name) if isinstance(module, nn.Conv2d) else linear(name))
            )
    with torch.no_grad():
        for batch in batches:
            call_model(model, batch)
    for handle in handles:
        handle.remove()
    found = {}
    for name, parts in inputs.items():
        found[name] = []
        for rows in parts:
            x = torch.cat(rows).double()
            found[name].append((x.shape[0], x.sum(0), x.square().sum(0), x.t() @ x))
    return found


def close(a, b, scale):
    return (a.double() - b).abs().max() <= 2e-5 * scale + 1e-9


def tokens_of(family, layer, batch, batch_first=True):
    """The token positions of a layer's input as a flat bool list, or None for all: straight from the batch."""
    key = family.mask(layer)
    if key is None or not isinstance(batch, dict) or key not in batch:
        return None
    mask = batch[key].bool() if "padding" not in key else ~batch[key]
    return (mask if batch_first else mask.t()).flatten()


def same(one, other):
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(((a == b) | ((a.double() - b.double()).abs() <= 1e-6)).all())
        for a, b in zip(one, other)
    )
