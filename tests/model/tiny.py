"""Writes the smallest model that a real server loads: llama's architecture, random weights.

Its answers are noise, but they are tokens, made one by one, with everything that a server says around
them. usage: tiny.py FILE
"""

import sys

import gguf
import numpy

LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT = 2, 64, 4, 128, 2048
# Pieces beyond the single bytes, so that more than bytes comes back.
PIECES = [*"abcdefghijklmnopqrstuvwxyz.,?!", *"가나다라마바사아자차카타파하은는이를의에", *"▁"]
PIECES += ["▁the", "▁of", "▁and", "▁a", "▁to", "▁in", "▁is", "▁not", "▁connection", "▁연결", "▁서버"]
# So that system prompt and question are told apart by more than their order.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def vocabulary():
    """Tokens as sentencepiece has them: three of its own, all bytes, pieces; longer ones are better."""
    kinds = gguf.TokenType
    tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    tokens += [(piece, float(len(piece)), kinds.NORMAL) for piece in PIECES]
    return tokens


def tensors(random, size):
    """Every weight of the architecture, by its name."""

    def weights(*shape):
        # As large as keeps the sums of a layer near one.
        return (random.standard_normal(shape) / numpy.sqrt(shape[-1])).astype(numpy.float32)

    ones = numpy.ones(WIDTH, dtype=numpy.float32)
    yield "token_embd.weight", weights(size, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", ones
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{name}.weight", weights(WIDTH, WIDTH)
        yield f"{block}.ffn_norm.weight", ones
        yield f"{block}.ffn_gate.weight", weights(HIDDEN, WIDTH)
        yield f"{block}.ffn_up.weight", weights(HIDDEN, WIDTH)
        yield f"{block}.ffn_down.weight", weights(WIDTH, HIDDEN)
    yield "output_norm.weight", ones
    output = weights(size, WIDTH)
    # The end comes by the limit on tokens, not before there is any text.
    output[:3] = 0
    yield "output.weight", output


def main():
    tokens = vocabulary()
    names, scores, kinds = zip(*tokens)
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors(numpy.random.default_rng(1), len(tokens)):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
