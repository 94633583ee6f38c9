"""A GGUF file of a random one-layer Llama with a byte-level tokenizer, written in code: a few hundred kB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers.pre_tokenizers import ByteLevel

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_tiny_gguf(
    path: Path,
    *,
    hidden: int = 32,
    heads: int = 4,
    feed: int = 64,
    kind: str = "F32",
    without: str = "",
    extra: bool = False,
) -> dict[str, np.ndarray]:
    """Write the file; return its tensors as stored, by their GGUF names. Matrices have the type ``kind``.

    The tensor ``without`` gets a name that no model has, and so have two ``extra`` ones of 7 and 3 numbers.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), hidden),
        "output_norm.weight": (hidden,),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (hidden, hidden),
        "blk.0.attn_k.weight": (hidden, hidden),
        "blk.0.attn_v.weight": (hidden, hidden),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (feed, hidden),
        "blk.0.ffn_up.weight": (feed, hidden),
        "blk.0.ffn_down.weight": (hidden, feed),
    }
    tensors = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    if extra:
        writer.add_tensor("blk.0.odd.weight", np.ones(7, np.float32))
        writer.add_tensor("other.bias", np.ones(3, np.float32))
    for name, tensor in tensors.items():
        written = "odd.weight" if name == without else name
        if tensor.ndim > 1:
            tensors[name] = quantize(tensor, GGMLQuantizationType[kind])
            writer.add_tensor(written, tensors[name], raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(written, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
