"""Lets torchvision be imported beside a CPU build of torch.

The registry's torchvision is linked against CUDA, so its C++ operators do not load beside a CPU torch, and its import
fails where it registers shapes for two of them. Declaring those two is enough for transforms and models, all that
ComfyUI needs. Put into the environment by provision.py with a .pth file.
"""

import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator, schema in (
                ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
                ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
            ):
                if not hasattr(torch.ops.torchvision, operator):
                    library.define(schema)
            sys.modules[__name__].library = library  # kept: its operators end with it
        return None


sys.meta_path.insert(0, DeclareOperators())
