"""Schedule and sampling steps of FLUX.2 [klein] as plain functions of tensors. Never imports ComfyUI."""
