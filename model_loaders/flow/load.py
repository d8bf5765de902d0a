"""From a file to a flow transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..formats.codecs import quantise
from ..formats.files import open_checkpoint
from ..formats.identify import require
from ..formats.names import Plan, flow_plan
from .model import Flow, sdpa
from .sizes import FlowSizes, flow_sizes


@dataclass(frozen=True)
class FlowFile:
    """A flow model's file after its header has been read and found whole. variant: what the header says it was trained
    for, as klein-tiny's does; None in the released files."""

    plan: Plan
    sizes: FlowSizes
    name: str
    variant: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights that are not quantised."""
        return self.plan.dtype

    def tensors(self, dtype: torch.dtype | None = None):
        """Yield (canonical name, tensor). With a dtype, weights of the file are cast to it one at a time; with an fp8
        dtype, those of the blocks become fp8 with a scale. Weights the file has in fp8 stay as they are."""
        for name, tensor in self.plan.tensors():
            layer, _, leaf = name.rpartition(".")
            if dtype is None or leaf != "weight" or layer in self.plan.quantised:
                yield name, tensor
            elif dtype.itemsize > 1:
                yield name, tensor.to(dtype)
            elif is_block_matrix(name, tensor.shape):
                weight, scale = quantise(tensor, dtype)
                yield name, weight
                yield f"{layer}.weight_scale", scale
            else:
                yield name, tensor


def read_flow(path: str | Path) -> FlowFile:
    """Open a file or folder and refuse, in one sentence (KleinError), all that is not a FLUX.2 [klein] flow model."""
    checkpoint = open_checkpoint(path, subfolder="transformer")
    require(checkpoint, "flow")
    plan = flow_plan(checkpoint)
    return FlowFile(plan, flow_sizes(plan), Path(path).name, checkpoint.metadata.get("klein_variant"))


def load_flow(path: str | Path, operations=nn, attention=sdpa, dtype: torch.dtype | None = None) -> Flow:
    """A flow transformer outside a host, in one dtype (the file's own unless given). fp8 layers need a host."""
    file = read_flow(path)
    dtype = dtype or file.dtype
    flow = Flow(file.sizes, operations, attention, dtype=dtype, device="meta").requires_grad_(False)
    flow.load_state_dict(dict(file.tensors(dtype)), assign=True)
    return flow.eval()


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is one of those that Black Forest Labs' fp8 files quantise: the matrices of the blocks."""
    return len(shape) == 2 and name.startswith(("double_blocks.", "single_blocks."))
