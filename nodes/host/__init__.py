"""Adapters: engine module -> native MODEL, CLIP, VAE, and one place for every difference between ComfyUI versions."""
