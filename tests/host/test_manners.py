"""What a host may expect of a pack: nodes work without a server, reports reach one client, patches are asked for."""

import importlib
import json
import uuid

import pytest
import torch
from websocket import WebSocketTimeoutException, create_connection

from tools import inprocess, small
from tools.server import PromptError
from tools.small import relative


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    path = small.save(small.flow_state(**small.FLOW), tmp_path_factory.mktemp("flow") / "flow-base.safetensors")
    return inprocess.import_adapter("flow").load_model(path)


def test_a_report_without_a_server_is_an_output(flow):
    inprocess.import_adapter("flow")
    cache = importlib.import_module("klein.nodes.cache").KleinReferenceCache
    _, report = cache.execute(model=flow, mode="off", device="gpu", dtype="model").args
    assert report.startswith("off: ")


def test_a_report_goes_to_the_client_that_queued_the_prompt_alone(comfy, graph):
    def client(name):
        return create_connection(f"ws://127.0.0.1:{comfy.port}/ws?clientId={name}", timeout=2)

    def texts(socket):
        found = []
        try:
            while True:
                message = socket.recv()
                event = json.loads(message) if isinstance(message, str) else {}
                if event.get("type") == "executed":
                    found += event["data"]["output"].get("text", [])
        except WebSocketTimeoutException:
            return found
        finally:
            socket.close()

    own, other = client(comfy.client), client(uuid.uuid4().hex)
    graph.prompt["text"] = f"a cat {uuid.uuid4().hex}"
    comfy.run(graph)
    assert any("of 512 tokens" in text for text in texts(own)) and texts(other) == []


@pytest.mark.parametrize("loader", [("loaders", "KleinFlowLoader", "weight_dtype"), ("cache", "KleinReferenceCache", "dtype")])
def test_fp8_is_not_offered_on_apples_gpus(monkeypatch, loader):
    inprocess.import_adapter("flow")
    import comfy.model_management

    module, name, key = loader
    node = getattr(importlib.import_module(f"klein.nodes.{module}"), name)

    def options():
        return [each.options for each in node.define_schema().inputs if each.id == key][0]

    assert any("fp8" in option or "float8" in option for option in options())
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("mps"))
    assert options() and not any("fp8" in option or "float8" in option for option in options())


def sampled(flow, negative, flag=True):
    """Latents at cfg 1 with a post-CFG patch that moves away from the negative, and whether it was given one."""
    sampling = inprocess.import_adapter("sampling")
    generator = torch.Generator().manual_seed(0)
    text, other = (torch.randn(1, 64, small.FLOW["context"], generator=generator) for _ in range(2))
    seen = []

    def away(args):
        seen.append(args["uncond_denoised"])
        return args["denoised"] + 0.5 * (args["cond_denoised"] - args["uncond_denoised"])

    model = flow.clone()
    if flag is not None:
        model.set_model_sampler_post_cfg_function(away, disable_cfg1_optimization=flag)
    negative = [[other, {}]] if negative else None
    latent = {"samples": torch.zeros(1, 128, 4, 6)}
    return sampling.sample(model, [[text, {}]], negative, latent, 7, 2, 1.0, 1.0, "official")[0]["samples"], seen


def test_at_cfg_1_the_negative_is_computed_where_a_patch_asks_for_it(flow):
    """Moving half away from the negative after CFG at cfg 1 is cfg 1.5."""
    got, seen = sampled(flow, negative=True)
    assert len(seen) == 2 and all(bool(each.any()) for each in seen)
    sampling = inprocess.import_adapter("sampling")
    generator = torch.Generator().manual_seed(0)
    text, other = (torch.randn(1, 64, small.FLOW["context"], generator=generator) for _ in range(2))
    latent = {"samples": torch.zeros(1, 128, 4, 6)}
    want = sampling.sample(flow, [[text, {}]], [[other, {}]], latent, 7, 2, 1.5, 1.0, "official")[0]["samples"]
    assert relative(got, want) < 1e-5


def test_at_cfg_1_the_negative_changes_nothing_where_no_patch_asks_for_it(flow):
    assert torch.equal(sampled(flow, negative=True, flag=None)[0], sampled(flow, negative=False, flag=None)[0])


def test_an_error_is_told_by_its_sentence_and_by_no_path_of_a_module(graph, comfy):
    graph.sampler["latent_image"] = graph.new("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1)
    with pytest.raises(PromptError, match="^The latent has shape") as error:
        comfy.run(graph)
    assert error.value.kind == "KleinError"
