"""Contenders that run in ONNX Runtime and OpenVINO. Needs numpy and the runtime alone: no torch, no winnow.

All copies are one model with an input and an output of its own for each, so that neither runtime can merge anything;
the rows of each copy are turned by one, so that no two constants are equal. One call computes every copy once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.layer import GROUP, Array, Copies, Layer, how_many, int4_groups, int8_rows


def onnxruntime(layer: Layer, size: int, values: str, threads: int, spin: bool) -> Copies:
    """``values``: fp32; int8a (dynamic, by channel); int4 (MatMulNBits, float32 arithmetic); int4a (int8 arithmetic)."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    rows, cols, weight = layer.rows, layer.cols, layer.weight()
    if values == "fp32":
        parts = {"w": np.ascontiguousarray(weight.T)}
    elif values == "int8a":
        eight, scale = int8_rows(weight)
        parts = {"w": np.ascontiguousarray(eight.T), "s": scale}
    else:
        four, scale = int4_groups(weight)
        unsigned = (four + 8).astype(np.uint8)
        parts = {"w": unsigned[:, :, 0::2] | unsigned[:, :, 1::2] << 4, "s": scale}
    bytes_each = sum(a.nbytes for a in parts.values())
    along_columns = values in ("fp32", "int8a")  # these weights are [cols, rows]: turned along their rows all the same
    count = how_many(size, bytes_each)
    types = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
    nodes, inputs, outputs, initializers = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "weights", "wb") as file:
            for i in range(count):
                x, y = f"x{i}", f"y{i}"
                inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", cols]))
                outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["batch", rows]))
                for key, array in parts.items():
                    turned = np.roll(array, i, array.ndim - 1 if along_columns else 0).reshape(array.shape)
                    tensor = TensorProto(
                        name=f"{key}{i}",
                        data_type=types[str(array.dtype)],
                        dims=(array.size,) if key == "s" else array.shape,
                    )
                    tensor.data_location = TensorProto.EXTERNAL
                    for name, text in (("location", "weights"), ("offset", file.tell()), ("length", array.nbytes)):
                        tensor.external_data.add(key=name, value=str(text))
                    initializers.append(tensor)
                    file.write(turned.tobytes())
                    file.write(bytes(-file.tell() % 4096))
                if values == "fp32":
                    nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [y]))
                elif values == "int8a":
                    nodes += [
                        helper.make_node("DynamicQuantizeLinear", [x], [f"q{i}", f"qs{i}", f"qz{i}"]),
                        helper.make_node("MatMulInteger", [f"q{i}", f"w{i}", f"qz{i}"], [f"i{i}"]),
                        helper.make_node("Cast", [f"i{i}"], [f"f{i}"], to=TensorProto.FLOAT),
                        helper.make_node("Mul", [f"qs{i}", f"s{i}"], [f"ss{i}"]),
                        helper.make_node("Mul", [f"f{i}", f"ss{i}"], [y]),
                    ]
                else:
                    nodes.append(
                        helper.make_node(
                            "MatMulNBits", [x, f"w{i}", f"s{i}"], [y], domain="com.microsoft",
                            K=cols, N=rows, bits=4, block_size=GROUP, accuracy_level=4 if values == "int4a" else 1,
                        )
                    )  # fmt: skip
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        (Path(folder) / "model.onnx").write_bytes(model.SerializeToString())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        session = ort.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])

    def bind(x: Array) -> Any:
        binding = session.io_binding()
        for i in range(count):
            binding.bind_cpu_input(f"x{i}", x)
            y = ort.OrtValue.ortvalue_from_shape_and_type([len(x), rows], np.float32)
            binding.bind_ortvalue_output(f"y{i}", y)
        return binding

    def use(batch: int) -> Callable[[int], Any]:
        binding = bind(layer.inputs(batch))
        return lambda i: session.run_with_iobinding(binding)

    def first(x: Array) -> Array:
        binding = bind(x)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    return Copies(bytes_each, count, use, first, per_call=count)


def openvino(layer: Layer, size: int, values: str, arithmetic: str, threads: int, sparse_rate: float = 0.0) -> Copies:
    """``values``: fp32, bf16, int8, int4 (weights only, ``arithmetic`` f32 or bf16), int8a (8 bit activations too, at a
    step fixed beforehand). ``sparse_rate``: int8 weights with more zeros than this are stored without them (needs AMX).
    """
    import openvino as ov
    from openvino import opset13 as op

    weight = layer.weight()
    if values in ("int8", "int8a"):
        parts = int8_rows(weight)
        bytes_each = weight.size + 2 * layer.rows
    elif values == "int4":
        parts = int4_groups(weight)
        bytes_each = weight.size // 2 + 2 * weight.size // GROUP
    else:
        parts = (weight,)
        bytes_each = weight.size * (4 if values == "fp32" else 2)
    count = how_many(size, bytes_each)

    def constant(i: int) -> Any:
        turned = [np.roll(a, i, 0) for a in parts]
        if len(turned) == 1:
            if values == "fp32":
                return op.constant(turned[0], shared_memory=True)
            return op.convert(op.constant(turned[0], dtype=ov.Type.bf16), "f32")
        if values == "int4":
            unsigned = (turned[0] + 8).astype(np.uint8)
            low = unsigned[..., 0::2] | unsigned[..., 1::2] << 4
            tensor = ov.Tensor(low.reshape(-1), list(turned[0].shape), ov.Type.u4)
            middle = op.constant(np.full((1, 1, 1), 8, np.float16))
            scaled = op.multiply(
                op.subtract(op.convert(op.constant(tensor, shared_memory=False), "f16"), middle),
                op.constant(turned[1].astype(np.float16)[:, :, None]),
            )
            flat = op.reshape(scaled, op.constant(np.array([layer.rows, layer.cols], np.int64)), special_zero=False)
            return op.convert(flat, "f32")
        if values == "int8a":
            return op.multiply(op.convert(op.constant(turned[0]), "f32"), op.constant(turned[1][:, None]))
        scales = op.constant(turned[1].astype(np.float16)[:, None])
        return op.convert(op.multiply(op.convert(op.constant(turned[0]), "f16"), scales), "f32")

    inputs, outputs = [], []
    for i in range(count):
        x = op.parameter([-1, layer.cols], ov.Type.f32, name=f"x{i}")
        inputs.append(x)
        given = x
        if values == "int8a":
            limits = [op.constant(np.float32(v)) for v in (-4, 4 * 127 / 128)]
            given = op.fake_quantize(x, *limits, *limits, 256)
        outputs.append(op.result(op.matmul(given, constant(i), False, True)))
    config = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if sparse_rate:
        config["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = sparse_rate
    compiled = ov.Core().compile_model(ov.Model(outputs, inputs, "layers"), "CPU", config)

    def request(x: Array) -> Any:
        made = compiled.create_infer_request()
        for i in range(count):
            made.set_input_tensor(i, ov.Tensor(x, shared_memory=True))
        return made

    def use(batch: int) -> Callable[[int], Any]:
        made = request(layer.inputs(batch))

        def call(i: int) -> None:
            made.start_async()
            made.wait()

        call(0)
        return call

    def first(x: Array) -> Array:
        made = request(x)
        made.start_async()
        made.wait()
        return np.array(made.get_output_tensor(0).data)

    return Copies(bytes_each, count, use, first, per_call=count)


def openvino_sparse(layer: Layer, size: int, rate: float, threads: int) -> Copies:
    """8 bit weights and activations, weights with more zeros than ``rate`` stored without them (AMX only)."""
    return openvino(layer, size, "int8a", "f32", threads, rate)
