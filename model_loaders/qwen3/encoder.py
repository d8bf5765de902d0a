"""The Qwen3 layers that FLUX.2 [klein] reads: the embedding and the first 27, on transformers' own modules.

What the flow model sees is the output of layers 9, 18 and 27 side by side (diffusers, Flux2KleinPipeline:
hidden_states_layers). Later layers, the last norm and the head are neither built nor read nor run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RMSNorm, Qwen3RotaryEmbedding

from ...errors import KleinError
from ..formats.files import open_checkpoint
from ..formats.identify import require
from ..formats.names import Plan, block_count, encoder_plan, encoder_prefix

TAPS = (9, 18, 27)
EPS, ROPE_THETA = 1e-6, 1e6  # Qwen3's config.json


@dataclass(frozen=True)
class EncoderSizes:
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_hidden: int
    vocabulary: int
    layers: int = max(TAPS)


@dataclass(frozen=True)
class EncoderFile:
    """An encoder's file after its header has been read and found whole."""

    plan: Plan
    sizes: EncoderSizes
    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights that are not quantised."""
        return self.plan.dtype


def read_encoder(path: str | Path) -> EncoderFile:
    """Open a file or Hugging Face folder and refuse, in one sentence (KleinError), all that is not a Qwen3 encoder."""
    checkpoint = open_checkpoint(path, subfolder="text_encoder")
    require(checkpoint, "encoder")
    prefix = encoder_prefix(checkpoint.shapes) or ""
    layers = block_count((name.removeprefix(prefix) for name in checkpoint.shapes), "layers")
    if layers < max(TAPS):
        raise KleinError(
            f"{checkpoint.path.name} has {layers} layers, expected {max(TAPS)} or more (FLUX.2 [klein] reads layers "
            f"{', '.join(map(str, TAPS))}): load the full Qwen3-8B or Qwen3-4B."
        )
    plan = encoder_plan(checkpoint, max(TAPS))
    return EncoderFile(plan, _sizes(plan), Path(path).name)


def _sizes(plan: Plan) -> EncoderSizes:
    vocabulary, hidden = plan.sides("embed_tokens.weight", 2)
    (head,) = plan.sides("layers.0.self_attn.q_norm.weight", 1)
    q, k = (plan.sides(f"layers.0.self_attn.{part}_proj.weight", 2)[0] for part in "qk")
    mlp, _ = plan.sides("layers.0.mlp.gate_proj.weight", 2)
    if head % 2 or q % head or k % head or q % k:
        raise KleinError(
            f"{plan.checkpoint.path.name} has {q} query and {k} key features in heads of {head}, expected whole even heads, and "
            f"queries a multiple of keys: download it again."
        )
    sizes = EncoderSizes(hidden, q // head, k // head, head, mlp, vocabulary)
    plan.expect(expected_shapes(sizes), f"hidden size {hidden}")
    return sizes


def expected_shapes(sizes: EncoderSizes) -> dict[str, tuple[int, ...]]:
    """Canonical weight name -> shape, for an encoder of these sizes."""
    hidden, head, mlp = sizes.hidden_size, sizes.head_dim, sizes.mlp_hidden
    q, k = sizes.num_heads * head, sizes.num_kv_heads * head
    layer = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (k, hidden),
        "self_attn.v_proj": (k, hidden),
        "self_attn.o_proj": (hidden, q),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {f"layers.{i}.{part}.weight": shape for i in range(sizes.layers) for part, shape in layer.items()}
    return {"embed_tokens.weight": (sizes.vocabulary, hidden), **shapes}


class Qwen3Encoder(nn.Module):
    """ids, mask (B, L) int64 -> (B, L, 3*hidden) in `compute_dtype`, the dtype of the activations."""

    def __init__(self, sizes: EncoderSizes, operations=nn, dtype=None, device=None):
        super().__init__()
        self.sizes = sizes
        self.compute_dtype = dtype or torch.float32
        config = Qwen3Config(  # type: ignore[call-arg]  # some versions declare only a part of these
            hidden_size=sizes.hidden_size,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            intermediate_size=sizes.mlp_hidden,
            vocab_size=sizes.vocabulary,
            num_hidden_layers=sizes.layers,
            rms_norm_eps=EPS,
            rope_theta=ROPE_THETA,
            max_position_embeddings=40960,
            attn_implementation="sdpa",
        )
        with torch.device("meta"):
            self.model = Qwen3Model(config)
        _use_operations(self.model, operations, dtype, device)
        # The last norm's weight belongs to layer 36: the tap at 27 is before any.
        self.model.norm = nn.Identity()  # type: ignore[assignment]
        self.model.rotary_emb = Qwen3RotaryEmbedding(config)  # its buffer is computed, not loaded: not on meta

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded, states = self.model.embed_tokens(ids).to(self.compute_dtype), []

        def tap(layer, inputs, output) -> None:
            states.append(output if isinstance(output, Tensor) else output[0])  # older versions of transformers: a tuple

        hooks = [self.model.layers[layer - 1].register_forward_hook(tap) for layer in TAPS]
        try:  # its own output_hidden_states holds on to the states of all layers
            self.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(states, dim=-1)


def _use_operations(model: nn.Module, operations, dtype, device) -> None:
    """Replace transformers' layers that hold weights by those of the namespace, so that a host can cast, offload,
    quantise and patch them."""
    where = dict(dtype=dtype, device=device)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            new = operations.Linear(module.in_features, module.out_features, bias=module.bias is not None, **where)
        elif isinstance(module, Qwen3RMSNorm):
            new = operations.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon, **where)
        elif isinstance(module, nn.Embedding):
            new = operations.Embedding(module.num_embeddings, module.embedding_dim, **where)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)


def load_encoder(path: str | Path, operations=nn, dtype: torch.dtype | None = None) -> Qwen3Encoder:
    """An encoder outside a host, in one dtype (the file's own unless given). fp8 layers need a host."""
    file = read_encoder(path)
    dtype = dtype or file.dtype
    encoder = Qwen3Encoder(file.sizes, operations, dtype=dtype, device="meta").requires_grad_(False)
    encoder.model.load_state_dict({name: tensor.to(dtype) for name, tensor in file.plan.tensors()}, assign=True)
    return encoder.eval()
