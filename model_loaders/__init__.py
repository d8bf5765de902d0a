"""The engine's models and how files become models. Imports torch, safetensors, transformers and einops; never ComfyUI."""
