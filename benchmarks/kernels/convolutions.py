"""2-D convolutions: winnow's sparse kernel against torch eager (NCHW, NHWC) and oneDNN's packed weights, float32.

    python -m benchmarks.kernels.convolutions --threads 1 --batches 1,8

One set of weights a contender, so they may stay in the cache; contenders alternate, figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

from benchmarks.common import arguments, finish, heading, listed

SHAPES = [  # input channels, output channels, kernel, height and width
    (64, 64, 3, 56), (128, 128, 3, 28), (256, 256, 3, 14), (512, 512, 3, 7),
    (256, 64, 1, 56), (64, 256, 1, 56), (2048, 512, 1, 7),
]  # fmt: skip
ZEROS = (0.7, 0.8, 0.9, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=listed(int), default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    args = arguments(parser)

    import torch
    from torch.nn import functional as F

    from winnow.kernels.swap import pack_layer

    facts = heading(threads=args.threads)
    lines = []
    print(f"| shape | batch | best dense | ms | {' | '.join(f'{zeros:.0%}' for zeros in ZEROS)} |")
    print("|---|--:|---|--:|" + "--:|" * len(ZEROS))
    for into, out, kernel, size in SHAPES:
        for batch in args.batches:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, into, size, size, generator=generator)
            conv = torch.nn.Conv2d(into, out, kernel, padding=kernel // 2)
            weight, bias, pad = conv.weight.detach().clone(), conv.bias.detach(), [kernel // 2] * 2
            wide, wide_weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
            ready = torch.ops.mkldnn._reorder_convolution_weight(weight, pad, [1, 1], [1, 1], 1, list(x.shape))
            calls = {
                "eager": lambda x=x, w=weight, b=bias, p=pad: F.conv2d(x, w, b, padding=p),
                "eager NHWC": lambda x=wide, w=wide_weight, b=bias, p=pad: F.conv2d(x, w, b, padding=p),
                "oneDNN packed": lambda x=wide, w=ready, b=bias, p=pad: torch.ops.mkldnn._convolution_pointwise(
                    x, w, b, p, [1, 1], [1, 1], 1, "none", [], ""
                ),
            }
            for zeros in ZEROS:
                keep = torch.rand(weight.shape, generator=generator) >= zeros
                with torch.no_grad():
                    conv.weight.copy_(weight * keep)
                packed = pack_layer(conv)
                calls[f"{zeros}"] = lambda layer=packed, x=x: layer(x)
            with torch.inference_mode():
                found = medians(calls, args.rounds)
            best = min(("eager", "eager NHWC", "oneDNN packed"), key=found.__getitem__)
            ratios = " | ".join(f"{found[best] / found[f'{zeros}']:.2f}×" for zeros in ZEROS)
            shape = f"{kernel}x{kernel}, {into} to {out}, {size}x{size}"
            lines.append({"shape": shape, "batch": batch, **{name: 1e3 * seconds for name, seconds in found.items()}})
            print(f"| {shape} | {batch} | {best} | {1e3 * found[best]:.3f} | {ratios} |", flush=True)
    finish({**facts, "convolutions": lines}, args.json)


def medians(calls: dict, rounds: int) -> dict[str, float]:
    """Seconds of one call of each, the order turned round in every other round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            calls[name]()  # its own data are in the cache again
            start = time.perf_counter()
            calls[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
