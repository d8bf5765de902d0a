"""A masked edit: the region against the whole picture, and the way back of 12 megapixels with its memory. Linux only."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial

import torch

from tools import inprocess, small
from tools.provision import ROOT
from tools.server import anonymous_bytes

from .table import Row, interleaved

FLOW = dict(hidden=256, heads=2, context=192, mlp=768, depth=2, single=4)
SIDE, SHARE = 2048, 0.05  # of the picture, and of it under the mask
LARGE = (3000, 4000)
BACK = (  # the mask, its share of the picture, the blend, and at most: seconds, times the picture, GB
    ("a mask of 5 %", 0.05, "feather", 2, 4, None),
    ("a mask of 5 %", 0.05, "none", None, None, None),
    ("a mask of 60 %", 0.6, "feather", 2, 4, None),
    ("a mask of 60 %", 0.6, "none", None, None, None),
    ("a mask of 60 %", 0.6, "seamless", None, None, None),
    ("a mask of 98 %", 0.98, "feather", None, 4, None),
    ("a mask of 1 megapixel", 2**20 / (LARGE[0] * LARGE[1]), "seamless", 5, None, 1),
)


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    return [*regions(folder, rounds), *back(rounds), *seams()]


def regions(folder, rounds: int) -> list[Row]:
    from klein.pictures.region import WHOLE, region

    flow = inprocess.hosted_flow(small.save(small.flow_state(**FLOW), folder / "small_flow.safetensors"))
    picture, mask = torch.zeros(1, SIDE, SIDE, 3), square(SIDE, SIDE, SHARE)
    settings = dict(mode="repaint", grow=16, feather=16, max_megapixels=4.0, margins=(0, 0, 0, 0))
    areas = {name: region(picture, mask, context=context, **settings) for name, context in (("region", 0.5), ("whole", WHOLE))}
    text, t = torch.randn(1, 512, FLOW["context"]), torch.tensor([0.7])
    latents = {name: torch.randn(1, 128, area.size[1] // 16, area.size[0] // 16) for name, area in areas.items()}
    times = interleaved({name: partial(flow, x, t, text, ref_latents=[x]) for name, x in latents.items()}, rounds)
    rows = []
    for name, seconds in times.items():
        tokens, whole = (latents[each][0, 0].numel() for each in (name, "whole"))
        what = f"5 % mask in {SIDE}x{SIDE}, a step with the {name} as image 1"
        rows.append(Row(f"{what}: tokens of the image", tokens, tokens / whole, unit=""))
        rows.append(Row(what, seconds, seconds / times["whole"]))
    return rows


def back(rounds: int) -> list[Row]:
    rows = []
    for name, share, blend, most, times, gigabytes in BACK:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.editing", str(share), blend, str(rounds)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, peak = map(float, child.stdout.split()[-2:])
        what = f"way back of {LARGE[1]}x{LARGE[0]}, {name}, {blend}"
        rows.append(Row(what, seconds, seconds / most if most else None, f"at most {most} s" if most else ""))
        asked = f"at most {times}" if times else f"at most {gigabytes} GB" if gigabytes else ""
        rows.append(Row(f"{what}: peak memory", peak / 1e9, peak / (12 * LARGE[0] * LARGE[1]), asked, "GB"))
    return rows


def seams() -> list[Row]:
    """Mean step across the mask's border by blend, in levels of 255, to that beside it: on a photograph whose colours have
    drifted, and on a scene that klein-tiny's VAE has encoded and decoded."""
    from skimage import data

    from klein.pictures.paste import paste
    from klein.pictures.region import WHOLE, region
    from tools.pictures import PAIR
    from tools.train.world import render

    photograph = torch.from_numpy(data.chelsea()[:288, :448] / 255).float()[None]
    scene = torch.from_numpy(render(PAIR))[None]
    vae = inprocess.import_adapter("vae").load_vae(ROOT / "tiny/vae/klein-tiny-vae.safetensors")
    pictures = {
        "photograph, drifted": (photograph, photograph**1.1 * 0.95 + 0.04),
        "scene, through the VAE": (scene, vae.decode(vae.encode(scene)).clamp(0, 1)),
    }
    rows = []
    for name, (source, made) in pictures.items():
        height, width = source.shape[1:3]
        area = region(source, square(height, width, 0.2), "repaint", WHOLE, 0, min(height // 8, 16), 1.0, (0, 0, 0, 0))
        for colour in ("off", "match"):
            for blend in ("none", "feather", "seamless"):
                across, beside = paste(made, area, blend, colour, "off")[2].seam
                rows.append(Row(f"seam, {name}, {blend}, colour {colour}", across, across / beside, unit="levels"))
    return rows


def square(height: int, width: int, share: float) -> torch.Tensor:
    """(1, height, width), a share of it in the middle painted, in the picture's aspect."""
    mask = torch.zeros(1, height, width)
    tall, wide = (round(side * share**0.5) for side in (height, width))
    mask[:, (height - tall) // 2 : (height + tall) // 2, (width - wide) // 2 : (width + wide) // 2] = 1
    return mask


def child(share: str, blend: str, rounds: str) -> None:
    """Median seconds of the way back, and the peak of anonymous bytes over those before."""
    import tools  # noqa: F401  lays the checkout out as the package klein
    from klein.pictures.paste import bring_back
    from klein.pictures.region import region

    picture = torch.rand(1, LARGE[0] // 8, LARGE[1] // 8, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)
    area = region(picture, square(*LARGE, float(share)), "repaint", 0.5, 16, 16, 1.0, (0, 0, 0, 0))
    made = area.pixels() * 0.9 + 0.05
    baseline, highest, over = anonymous_bytes("self"), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.01):
            highest = max(highest, anonymous_bytes("self"))

    bring_back(made, area, blend, "off", "off")
    times = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        bring_back(made, area, blend, "off", "off")
        times.append(time.perf_counter() - start)
    watcher = threading.Thread(target=watch)
    watcher.start()
    bring_back(made, area, blend, "off", "off")
    over.set()
    watcher.join()
    print(sorted(times)[len(times) // 2], highest - baseline)


if __name__ == "__main__":
    child(*sys.argv[1:])
