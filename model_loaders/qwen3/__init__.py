"""The Qwen3 text encoder of FLUX.2 [klein]: its prompt, its tokenizer, and as many layers as are read."""
