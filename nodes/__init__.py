"""ComfyUI's view of the pack: schemas, validation, one call into the engine. The only code that imports ComfyUI."""
