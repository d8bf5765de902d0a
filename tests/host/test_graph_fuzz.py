"""Seeded nonsense in graphs over HTTP: values, links and pictures that nobody would wire. Each graph is refused by the host
before it runs, ends in one short sentence of ours, or gives a picture; and the queue runs on."""

import random

import pytest

from fixtures.graph import picture
from klein.errors import LONGEST
from tools.server import PromptError
from workflows.graph import NODE_TYPES

VALUES = (
    None, "", " ", "\ud800", "x" * 3000, "nan", "auto", True, [], {}, 0, -1, 1, 3, 2**53, -(2**63), 1e308, -1e-9, 0.5, 1.0, 10.0,
    ["nowhere", 0], "../../etc/passwd", "\x00", "image " + "9" * 400, "official", "keep", "float8_e4m3fn", "across_runs", "cpu",
)  # fmt: skip
OURS = ("KleinFlowLoader", "KleinQwen3EncoderLoader", "KleinVAELoader", "KleinPrompt", "KleinReference", "KleinMultiReference",
        "KleinReferenceCache", "KleinDistilledSampler", "KleinSchedule", "KleinCanvasRestore", "KleinPreflight")  # fmt: skip


def built(graph, comfy):
    """A small graph with every node of the pack, and links of every type to draw from."""
    graph.canvas.update(width=64, height=48)
    files = [picture(comfy, f"fuzz{i}.png", *size, i) for i, size in enumerate([(16, 16), (64, 48), (1, 40), (300, 17)])]
    images = [graph.new("LoadImage", image=name) for name in files]
    masks = [[image[0], 1] for image in images] + [graph.new("SolidMask", value=v, width=8, height=8) for v in (0.0, 1.0)]
    flow, clip, vae = graph.model, graph.clip_out, graph.new("KleinVAELoader", **graph.vae)
    cached = graph.new("KleinReferenceCache", model=flow, mode="within_run")
    chained = graph.reference(images[2], mask=masks[4], strength=0.5, references=graph.reference(images[0]))
    both = graph.new(
        "KleinMultiReference", positive=graph.positive, vae=vae, negative=graph.positive, image_1=images[1], references=chained,
        width=64, height=48,
    )  # fmt: skip
    sigmas = graph.new("KleinSchedule", steps=2, latent=graph.empty)
    checked, _ = graph.new(
        "KleinPreflight",
        model=cached,
        clip=clip,
        vae=vae,
        positive=both,
        latent_image=[both[0], 2],
        references=chained,
        steps=2,
    )
    graph.sampler.update(
        model=[checked, 0], positive=[checked, 3], latent_image=[checked, 4], sigmas=sigmas, negative=[both[0], 1], steps=2
    )
    decoded = graph[graph.save]["inputs"]["images"]
    graph[graph.save]["inputs"]["images"] = graph.new("KleinCanvasRestore", image=decoded, canvas=[both[0], 3])
    links = [*images, *masks, flow, clip, vae, cached, chained, sigmas, graph.positive, graph.empty, decoded]
    return links + [[both[0], slot] for slot in range(5)] + [[checked, slot] for slot in range(9)]


def confused(graph, links, rng) -> str:
    """Change one to three inputs of the pack's nodes; says what."""
    said = []
    for _ in range(rng.randint(1, 3)):
        number = rng.choice([number for number, node in graph.items() if node["class_type"] in OURS])
        inputs = graph[number]["inputs"]
        known = NODE_TYPES[graph[number]["class_type"]]
        name = rng.choice([*known.widgets, *(name.removesuffix("?") for name, _ in known.links)])
        value = rng.choice([rng.choice(VALUES), rng.choice(links), "taken out"])
        if value == "taken out":
            inputs.pop(name, None)
        else:
            inputs[name] = value
        said.append(f"{graph[number]['class_type']}.{name} = {str(value)[:40]!r}")
    return ", ".join(said)


@pytest.mark.parametrize("graphs", [60, pytest.param(800, marks=pytest.mark.long)])
def test_a_graph_of_nonsense_is_refused_or_runs_and_the_queue_goes_on(graph, comfy, graphs):
    links = built(graph, comfy)
    good = {number: dict(node["inputs"]) for number, node in graph.items()}
    comfy.run(graph)
    ends = {"refused": 0, "KleinError": 0, "a picture": 0}
    raw = []
    for seed in range(graphs):
        for number, inputs in good.items():
            graph[number]["inputs"] = dict(inputs)
        what = confused(graph, links, random.Random(seed))
        try:
            comfy.wait(comfy.queue(graph), patience=60)
            ends["a picture"] += 1
        except TimeoutError:
            raise AssertionError(f"{seed}: {what}: not over after a minute") from None
        except PromptError as error:
            kind = error.kind.rpartition(".")[2]
            line = error.text.isprintable() and len(error.text) <= LONGEST and error.text.endswith(".")
            if kind in ends and (kind == "refused" or line):
                ends[kind] += 1
            else:
                raw.append(f"{seed}: {what}: {error.kind}: {error.text[:300]}")
    assert not raw, "\n".join(raw)
    assert all(ends.values()), ends
    for number, inputs in good.items():
        graph[number]["inputs"] = dict(inputs)
    assert comfy.run(graph)[graph.save]["images"]
