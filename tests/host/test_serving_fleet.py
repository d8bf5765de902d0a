"""Three real hosts behind a real nginx with docs/nginx.conf."""

import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fixtures.serving import PROMPT, ask, form, host, png, text
from tools.fleet import Fleet, nginx

pytestmark = [pytest.mark.long, pytest.mark.skipif(not nginx(), reason="nginx is not here: apt-get install nginx")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    servers = [host(folder / f"host{number}") for number in range(3)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def fleet(hosts, tmp_path_factory):
    proxy = Fleet(tmp_path_factory.mktemp("nginx"), [server.port for server in hosts])
    yield SimpleNamespace(url=proxy.url)
    proxy.stop()


def reference(number: int) -> bytes:
    return png(np.full((64, 64, 3), number, np.uint8))


def edited(fleet, number: int, steps: int = 4):
    fields = [("model", "klein-tiny"), ("prompt", PROMPT), ("seed", str(number)), ("steps", str(steps))]
    body, kind = form([*fields, ("image[]", reference(number))])
    return ask(fleet, "/v1/images/edits", body, {"x-klein-references": f"reference {number}"}, kind)


def seeds(server, where: str = "/history") -> list[int]:
    found = ask(server, where).json
    graphs = (
        [entry["prompt"][2] for entry in found.values()]
        if where == "/history"
        else [item[2] for item in found["queue_running"]]
    )
    return [node["inputs"]["seed"] for graph in graphs for node in graph.values() if "seed" in node["inputs"]]


def test_the_same_references_find_the_same_host_and_others_are_spread(hosts, fleet):
    for _ in range(2):
        assert [edited(fleet, number).status for number in range(8)] == [200] * 8
    ran = [set(seeds(server)) for server in hosts]
    assert sum(map(len, ran)) == 8 and len([each for each in ran if each]) > 1, ran  # each on one host, both times


def test_a_task_of_black_forest_labs_protocol_is_found_again(fleet):
    for number in range(4):
        body = {"prompt": PROMPT, "width": 64, "height": 64, "input_image": text(reference(number))}
        polling = ask(fleet, "/bfl/v1/klein-tiny", body).json["polling_url"]
        assert polling.startswith(fleet.url)
        while (said := ask(fleet, polling).json)["status"] == "Pending":
            time.sleep(0.05)
        assert Image.open(BytesIO(ask(fleet, said["result"]["sample"]).data)).size == (64, 64)


def test_a_host_killed_in_mid_run_costs_its_own_jobs_only_and_they_are_painted_by_another(hosts, fleet):
    """Last in this file, as it ends with two hosts."""
    numbers = range(100, 112)
    with ThreadPoolExecutor(len(numbers)) as pool:
        asked = [pool.submit(edited, fleet, number, 20) for number in numbers]
        while not (lost := [number for number in seeds(hosts[0], "/queue") if number in numbers]):
            time.sleep(0.02)
        hosts[0].process.kill()
        answers = [each.result() for each in asked]
    assert [answer.status for answer in answers] == [200] * len(numbers)
    assert [answer.json["data"][0]["seed"] for answer in answers] == list(numbers)
    elsewhere = [number for server in hosts[1:] for number in seeds(server) if number in numbers]
    assert len(elsewhere) == len(set(elsewhere)) and set(lost) <= set(elsewhere)  # nothing twice
