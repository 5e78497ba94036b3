"""GGUF files for tests, written by ggml's own package from plain dicts, and cut into parts as `gguf-split` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...skips import package

gguf = package("gguf", "GGUF files by other readers")


def write(
    path: Path, name: str, keys: dict[str, Any], tensors: dict[str, np.ndarray], kinds: Any = None, **more: Any
) -> Path:
    writer = gguf.GGUFWriter(path, name)
    for key, value in ({f"{name}.{key}": value for key, value in keys.items()} | more).items():
        kind = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kind.get(type(value), writer.add_array)(key, value)
    for key, w in tensors.items():
        quantized = (kinds or {}).get(key.split(".")[-2])
        data = w if quantized is None else gguf.quants.quantize(w, quantized)
        writer.add_tensor(key, np.ascontiguousarray(data), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(path: Path, count: int) -> list[Path]:
    """The file's parts as gguf-split names and writes them: the first has the metadata."""
    reader = gguf.GGUFReader(path)
    names = [tensor.name for tensor in reader.tensors]
    files = [path.with_name(f"big-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    for i, file in enumerate(files):
        writer = gguf.GGUFWriter(file, "llama")
        if i:
            writer.kv_data[0].clear()
        else:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kinds = [gguf.GGUFValueType(kind) for kind in field.types]
                    writer.add_key_value(key, field.contents(), kinds[0], sub_type=kinds[1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for tensor in reader.tensors[len(names) * i // count : len(names) * (i + 1) // count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files
