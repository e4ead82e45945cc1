"""LoRA files as bytes, without torch: safetensors headers of any kind, and a LoRA of a real model's size."""

import json
import math
import struct

ITEM = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1}
SIZES = {"XL": (2560, 4096), "2B": (2048, 2048)}


def blob(tensors, metadata=None, data=b""):
    """Return a safetensors file; `tensors` maps names to shapes, or to (dtype, shape), or to (dtype, shape, bytes)."""
    header, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, entry in tensors.items():
        dtype, shape, *content = entry if entry and isinstance(entry[0], str) else ("F16", entry)
        content = content[0] if content else bytes(ITEM[dtype] * math.prod(shape))
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    return wrap(json.dumps(header).encode(), body + data)


def wrap(header, body=b""):
    return struct.pack("<Q", len(header)) + header + body


def attention(kind="XL", rank=2, prefix="base_model.model.", layers=(0,)):
    """Return the tensors of a LoRA on the queries of a real model's size."""
    hidden, queries = SIZES[kind]
    shapes = {"A": (rank, hidden), "B": (queries, rank)}
    return {
        f"{prefix}layers.{i}.self_attn.q_proj.lora_{m}.weight": s
        for i in layers
        for m, s in shapes.items()
    }
