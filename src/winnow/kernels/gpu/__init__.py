"""Packed weights on a GPU. Written and tested in Triton's interpreter, never run on a GPU: nothing here is known to be fast."""

from winnow.kernels.gpu.layers import GpuLinear as GpuLinear
from winnow.kernels.gpu.layers import to_gpu as to_gpu
from winnow.kernels.gpu.layers import to_semi_structured as to_semi_structured
