"""The trained parts as files in the released formats, 16 bit, where the pack finds them: tiny/."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from tools.small import vae_state

from . import flow, text, vae
from .parts import ROOT, trained

TINY = ROOT / "tiny"
DTYPE = torch.bfloat16  # as the released files


def main() -> None:
    transformer = trained("flow", flow.STEPS, flow.build(), flow.INPUTS).state_dict()
    names = {name: name.replace("_norm.weight", "_norm.scale") if ".norm." in name else name for name in transformer}
    transformer = {names[name]: weight for name, weight in transformer.items()}
    write(transformer, "diffusion_models/klein-tiny.safetensors", klein_variant="kv")
    write(vae_state(vae.finish()), "vae/klein-tiny-vae.safetensors")
    tokenizer, encoder = text.finish()
    folder = "text_encoders/klein-tiny"
    write({f"model.{name}": weight for name, weight in encoder.model.state_dict().items()}, f"{folder}/model.safetensors")
    tokenizer.save(str(TINY / folder / "tokenizer.json"))
    config = encoder.model.config.to_dict() | {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
    (TINY / folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")


def write(state: dict[str, torch.Tensor], name: str, **metadata: str) -> None:
    (TINY / name).parent.mkdir(parents=True, exist_ok=True)
    state = {key: weight.to(DTYPE).contiguous() if weight.is_floating_point() else weight for key, weight in state.items()}
    save_file(state, TINY / name, {"format": "pt", **metadata})
    (TINY / name).chmod(0o644)
    print(f"{name}: {(TINY / name).stat().st_size / 1e6:.1f} MB")
