"""Pure image space: sizes, masks, references and what is said of them. Never imports ComfyUI or a model."""
