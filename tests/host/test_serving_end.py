"""The agents' HTTP: requests that take too long, clients that die, and a host that ends or is started again in mid-run: all who
wait get one sentence, and nothing hangs."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from fixtures.serving import PROMPT, ask, generate, host, idle, refused

LONG = {"steps": 100, "size": "512x512"}  # most of a minute
TOO_LONG = "The request took more than 2 seconds (KLEIN_MAX_SECONDS) and is cancelled"
ENDING = "The host is shutting down: ask again"
SLOW = """
import time
from execution import PromptExecutor

NODE_CLASS_MAPPINGS = {}
execute = PromptExecutor.execute

def late(*given, **named):
    time.sleep(2.5)
    return execute(*given, **named)

PromptExecutor.execute = late
"""  # a host that takes its time between a run's leaving the queue and its first node


def begun(server, runs: int = 1) -> None:
    """Waits until a run is on its way, and so many are there."""
    while not ask(server, "/queue").json["queue_running"] or len(sum(ask(server, "/queue").json.values(), [])) < runs:
        time.sleep(0.02)


def task(server) -> dict:
    """What becomes of a long task, as Black Forest Labs' clients ask."""
    polling = ask(server, "/bfl/v1/klein-tiny", {"prompt": PROMPT, "steps": 100, "width": 512, "height": 512}).json[
        "polling_url"
    ]
    while (said := ask(server, polling).json)["status"] == "Pending":
        time.sleep(0.1)
    return said


def events(answer) -> list[dict]:
    return [json.loads(line[6:]) for line in answer.data.decode().splitlines() if line.startswith("data: ")]


def interrupted(server) -> bool:
    """Whether every run of the host's history, when all have ended, was cut short."""
    idle(server)
    messages = [[kind for kind, _ in run["status"]["messages"]] for run in ask(server, "/history").json.values()]
    return bool(messages) and all("execution_interrupted" in kinds for kinds in messages)


def test_a_request_ends_with_its_time_or_its_host_and_its_run_with_it(tmp_path):
    server = host(tmp_path, KLEIN_MAX_SECONDS="2")
    try:
        with ThreadPoolExecutor() as pool:
            plain, stream = pool.submit(generate, server, **LONG), pool.submit(generate, server, stream=True, **LONG)
            polled = pool.submit(task, server)
            gateway = {"prompt": PROMPT, "steps": 100, "size": "512x512"}
            fourth = pool.submit(ask, server, "/v1/ai/image-model", gateway, {"ai-model-id": "klein-tiny"})
        refused(plain.result(), TOO_LONG, status=504)
        refused(fourth.result(), TOO_LONG, status=504)
        (error,) = events(stream.result())
        assert error["type"] == "error" and TOO_LONG in error["error"]["message"]
        assert polled.result()["status"] == "Error" and TOO_LONG in polled.result()["details"]["message"]
        assert interrupted(server)
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(generate, server, **LONG) for _ in range(2)]
            begun(server, runs=2)
            server.process.send_signal(signal.SIGTERM)
            for each in waiting:
                refused(each.result(), ENDING, status=503)
                assert int(each.result().headers["Retry-After"]) > 0
        assert server.process.wait(10) == -signal.SIGTERM
    finally:
        server.stop()


def test_a_request_whose_time_ends_before_its_run_has_begun_ends_that_run_too(tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/__init__.py").write_text(SLOW)
    server = host(tmp_path, packs=(tmp_path / "slow",), KLEIN_MAX_SECONDS="2")
    try:
        refused(generate(server, **LONG), TOO_LONG, status=504)
        assert interrupted(server)
    finally:
        server.stop()


@pytest.mark.long
def test_a_host_killed_and_started_again_in_mid_run_leaves_nobody_waiting_and_paints_on(tmp_path):
    server = host(tmp_path)
    try:
        body = {"prompt": PROMPT, "steps": 100, "width": 512, "height": 512}
        polling = ask(server, "/bfl/v1/klein-tiny", body).json["polling_url"]
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(generate, server, stream=stream, **LONG) for stream in (False, True)]
            begun(server, runs=3)
            server.process.kill()
            killed = time.monotonic()
            for each in waiting:
                with pytest.raises((OSError, HTTPException)):  # there is nobody to say a sentence
                    each.result()
            assert time.monotonic() - killed < 5
        server.start()
        refused(ask(server, polling.removeprefix(polling.split("/bfl")[0])), "is not known here: ask again", status=404)
        assert generate(server).status == 200
    finally:
        server.stop()
