"""The host's side: its queue, its history, its folders. All that serving knows of ComfyUI."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import execution
import folder_paths
from server import PromptServer

import nodes

from ..workflows.graph import Graph
from .refused import Refused

WAITING, NEXT = 0.05, 0.002  # seconds between two looks at a run that others are before, and at one that runs or is the next


def server() -> PromptServer | None:
    return getattr(PromptServer, "instance", None)


def inputs() -> Path:
    return Path(folder_paths.get_input_directory())


async def prepare(graph: Graph) -> tuple:
    """A run as the host's own POST /prompt makes it of a graph, validated, not yet in the queue."""
    body = {"prompt": graph.api(), "extra_data": {"extra_pnginfo": {"workflow": graph.frontend()}}}
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


async def saved(prompt_id: str, gone) -> Path:
    """The one picture that a run has saved, once it has ended. Refused when it failed, or when the client is gone."""
    queue = server().prompt_queue
    while True:
        running, pending = queue.get_current_queue_volatile()
        place = next((i for i, item in enumerate([*running, *pending]) if item[1] == prompt_id), None)
        if place is None:
            break
        if gone():
            raise Refused("The client went away: the run is cancelled.", "", 499)
        await asyncio.sleep(NEXT if place <= 1 else WAITING)
    entry = queue.get_history(prompt_id=prompt_id).get(prompt_id)
    if entry is None:
        raise Refused("The run was removed from the host's queue: ask again.")
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_interrupted":
            raise Refused("The run was interrupted at the host: ask again.")
        if kind == "execution_error":
            known = message["exception_type"].endswith(("KleinError", "Refused"))
            raise Refused(message["exception_message"].strip(), "", 400 if known else 500)
    (image,) = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    return Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"])


def cancel(prompt_id: str) -> None:
    """Out of the queue, or interrupted if it is what runs now; a run that has ended stays as it is."""
    queue = server().prompt_queue
    with queue.mutex:  # the host cannot end a run and start the next while this is held
        queue.delete_queue_item(lambda item: item[1] == prompt_id)
        if any(item[1] == prompt_id for item in queue.currently_running.values()):
            nodes.interrupt_processing()
