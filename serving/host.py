"""The host's side: its queue, its history, its folders. All that serving knows of ComfyUI."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import execution
import folder_paths
from server import BinaryEventTypes, PromptServer

import nodes

from ..workflows.graph import Graph
from .refused import Refused

WAITING, NEXT = 0.05, 0.002  # seconds between two looks at a run that others are before, and at one that runs or is the next


def server() -> PromptServer | None:
    return getattr(PromptServer, "instance", None)


def inputs() -> Path:
    return Path(folder_paths.get_input_directory())


async def prepare(graph: Graph, previews: bool = False, told: bool = True) -> tuple:
    """A run as the host's own POST /prompt makes it of a graph, validated, not yet in the queue. previews: asked of hosts that
    can make them for one run; others make them as they were started (--preview-method). told: whether all pages hear of it;
    of such a run the history lacks what a cached node shows (0.3.75)."""
    wanted = {"preview_method": "auto"} if previews else {}
    if not told:
        wanted["client_id"] = str(uuid.uuid4())
    body = {"prompt": graph.api(), "extra_data": {"extra_pnginfo": {"workflow": graph.frontend()}, **wanted}}
    body = server().trigger_on_prompt(body)
    prompt_id = str(uuid.uuid4())
    valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, body["prompt"], None)
    if not valid:
        details = [f"{each['message']}: {each['details']}" for node in node_errors.values() for each in node["errors"]]
        raise Refused("; ".join(details) or error["message"])
    return prompt_id, body["prompt"], {**body["extra_data"], "create_time": int(time.time() * 1000)}, outputs


def put(runs: list[tuple], most: int) -> None:
    """Into the queue, all or none."""
    queue = server().prompt_queue
    waiting = queue.get_tasks_remaining()
    if waiting + len(runs) > most:
        raise Refused(f"The queue is full ({waiting} of {most} runs, {len(runs)} more asked): try again later.", "", 429, 5)
    for prompt_id, prompt, extra, outputs in runs:
        queue.put((server().number, prompt_id, prompt, extra, outputs, {}))
        server().number += 1


async def looks(prompt_id: str) -> AsyncIterator[None]:
    """Once for each look at a run that still waits or runs."""
    queue = server().prompt_queue
    while True:
        running, pending = queue.get_current_queue_volatile()
        place = next((i for i, item in enumerate([*running, *pending]) if item[1] == prompt_id), None)
        if place is None:
            return
        yield
        await asyncio.sleep(NEXT if place <= 1 else WAITING)


def saved(prompt_id: str) -> Path:
    """The one picture that a run which has ended has saved."""
    (image,) = [image for output in ended(prompt_id) for image in output.get("images", ())]
    return Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"])


def said(prompt_id: str) -> str:
    """The one text that a run which has ended has shown."""
    (text,) = [text for output in ended(prompt_id) for text in output.get("text", ())]
    return text


def ended(prompt_id: str) -> list[dict]:
    """What the nodes of a run have shown. Refused when it failed."""
    entry = server().prompt_queue.get_history(prompt_id=prompt_id).get(prompt_id)
    if entry is None:
        raise Refused("The run was removed from the host's queue: ask again.")
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_interrupted":
            raise Refused("The run was interrupted at the host: ask again.")
        if kind == "execution_error":
            known = message["exception_type"].endswith(("KleinError", "Refused"))
            raise Refused(message["exception_message"].strip(), "", 400 if known else 500)
    return list(entry["outputs"].values())


class Previews:
    """Hears, in the place of a web page, what the host tells all pages of these runs: each step's preview, if it makes any."""

    def __init__(self, runs: list[str]):
        self.steps: dict[str, list[tuple[float, bytes]]] = {
            run: [] for run in runs
        }  # how far the run was, and its picture then
        self.run, self.progress = "", 0.0

    def __enter__(self) -> Previews:
        server().sockets[id(self)] = self
        return self

    def __exit__(self, *_) -> None:
        del server().sockets[id(self)]

    async def send_json(self, message: dict) -> None:
        match message:  # other packs broadcast under this name whatever they like, and what is raised here ends the host
            case {
                "type": "progress",
                "data": {"prompt_id": str(run), "value": int() | float() as done, "max": int() | float() as most},
            }:
                if 0 <= done <= most <= sys.maxsize and most:
                    self.run, self.progress = run, done / most

    async def send_bytes(self, message: bytes) -> None:
        if int.from_bytes(message[:4], "big") == BinaryEventTypes.PREVIEW_IMAGE and self.run in self.steps:
            self.steps[self.run].append((self.progress, bytes(message[8:])))


def cancel(prompt_id: str) -> None:
    """Out of the queue, or interrupted, until it has ended, if it is what runs now; a run that has ended stays as it is."""
    queue = server().prompt_queue
    with queue.mutex:  # the host cannot end a run and start the next while this is held
        queue.delete_queue_item(lambda item: item[1] == prompt_id)
        running = any(item[1] == prompt_id for item in queue.currently_running.values())
        if running:
            nodes.interrupt_processing()
    if running:  # the host forgets an interrupt that comes between a run's leaving the queue and its first node
        asyncio.get_running_loop().call_later(WAITING, cancel, prompt_id)
