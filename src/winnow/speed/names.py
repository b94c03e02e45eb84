"""What ``--with`` takes: families of contenders, in the order they are shown."""

FAMILIES = ("dense", "bf16", "compile", "int8", "onnx", "openvino", "packed", "accelerated")
