"""Klein Preflight's estimates against what was measured: memory of the activations of a step, and the time of a look at the
real sizes, whose files are nothing but a header over a hole."""

from __future__ import annotations

import time
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from klein.model_loaders.flow.model import Flow
from klein.model_loaders.flow.sizes import FlowSizes, expected_shapes
from klein.model_loaders.flow.work import Sequence, activation_bytes
from tools import inprocess, small

from .table import Row

KLEIN_9B = FlowSizes(128, 12288, 4096, 32, 12288, 8, 24)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that lived at once, of those made inside and not there before."""

    def __init__(self, before: list[torch.Tensor]):
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakKeyDictionary({tensor.untyped_storage(): 0 for tensor in before})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen[storage] = size = storage.nbytes()
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


@torch.no_grad()
def peak(hidden: int, dtype: torch.dtype, side: int, references: int, kept: bool = False) -> tuple[int, int]:
    """(estimate, measured) of a step at side x side pixels with references of the same size."""
    sizes = FlowSizes(128, 3 * hidden, hidden, hidden // 128, 3 * hidden, 1, 2)
    flow = Flow(sizes, dtype=dtype).requires_grad_(False)
    cells = side // 16
    latents = [torch.randn(1, 128, cells, cells, dtype=dtype) for _ in range(references)]
    kv = flow.read_references(latents) if kept else None
    inputs = torch.randn(1, 128, cells, cells, dtype=dtype), torch.full((1,), 0.5), torch.randn(1, 512, 3 * hidden, dtype=dtype)
    kept_before = [each for pair in kv.blocks.values() for each, _ in pair] if kv else []
    with Peak([*flow.parameters(), *inputs, *latents, *kept_before]) as measured:
        flow(*inputs, ref_latents=latents, reference_kv=kv)
    count = references * cells**2
    tokens = Sequence(512, cells**2, *((0, count) if kept else (count, 0)))
    inside = sizes.context_in_dim * tokens.text + 2 * sizes.in_channels * tokens.image  # text and latent are there before
    return activation_bytes(sizes, tokens, dtype.itemsize) - inside * dtype.itemsize, measured.most


def hollow(path: Path, sizes: FlowSizes) -> Path:
    """A flow model's file of these sizes in bf16, of a header and a hole."""
    return small.hollow(path, {name: ("BF16", 2, shape) for name, shape in expected_shapes(sizes).items()})


def measure(folder: Path) -> list[Row]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for hidden, side, references, kept in (
            (512, 512, 0, False),
            (512, 512, 2, False),
            (512, 512, 2, True),
            (1024, 256, 1, False),
        ):
            estimate, measured = peak(hidden, dtype, side, references, kept)
            name = f"activations, hidden {hidden}, {side}x{side}, {references} references{' kept' * kept}, {str(dtype)[6:]}"
            rows.append(Row(name, measured / 2**20, estimate / measured, "estimate 0.9 to 1.1", "MB"))
    flow, preflight = (inprocess.import_adapter(name) for name in ("flow", "preflight"))
    model = flow.load_model(hollow(folder / "flux-2-klein-9b.safetensors", KLEIN_9B))
    latent = {"samples": torch.zeros(1, 128, 64, 64)}
    start = time.perf_counter()
    print(preflight.preflight(model, None, None, None, latent, None, 4, 1.0))
    rows.append(Row("preflight of 9B at 1024x1024", time.perf_counter() - start, None, "0.2 s"))
    return rows
