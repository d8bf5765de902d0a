"""The OpenAPI description of all routes, made of the very tables that check what is asked."""

from __future__ import annotations

from .fields import Body
from .http import Route
from .job import MISSING, kinds
from .models import found
from .refused import Refused
from .settings import Settings


def document(routes: list[Route], settings: Settings) -> dict:
    values = {name: kind.schema for name, kind in kinds(settings).items()}
    values["model"] = {**values["model"], "enum": list(found())}
    paths: dict[str, dict] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, values)
    asked = {"bearer": {"type": "http", "scheme": "bearer"}, "x-key": {"type": "apiKey", "in": "header", "name": "x-key"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FLUX.2 [klein] on this ComfyUI", "version": "1"},
        "paths": paths,
        **({"components": {"securitySchemes": asked}, "security": [{name: []} for name in asked]} if settings.key else {}),
    }


def operation(route: Route, values: dict[str, dict]) -> dict:
    error = content(("application/json",), shape(route.failure(Refused("A sentence."))))
    said = {
        "summary": route.says,
        "parameters": [
            {"name": each.name, "in": each.where, "required": True, "schema": values.get(each.field, {"type": "string"})}
            for each in route.places
        ],
        "responses": {
            "200": {"description": "As asked.", "content": content(route.gives, {})},
            "default": {"description": "Refused, with a sentence that says why.", "content": error},
        },
    }
    if route.takes:
        kinds = ("application/json", "multipart/form-data") if route.takes.form else ("application/json",)
        said["requestBody"] = {"required": True, "content": content(kinds, schema(route.takes, values))}
    return said


def content(kinds: tuple[str, ...], schema: dict) -> dict:
    return {kind: {"schema": schema} for kind in kinds}


def schema(body: Body, values: dict[str, dict]) -> dict:
    neutral = {name: {"enum": list(same)} if same else {} for name, same in body.neutral.items()}
    return {
        "type": "object",
        "properties": {**{theirs: values[ours] for theirs, ours in body.names.items()}, **body.others, **neutral},
        "required": [theirs for theirs, ours in body.names.items() if ours in MISSING],
        "additionalProperties": False,
    }


def shape(value) -> dict:
    """The schema of what is like this value; None may be anything."""
    if isinstance(value, dict):
        return {"type": "object", "properties": {name: shape(each) for name, each in value.items()}, "required": list(value)}
    return {"type": "string"} if isinstance(value, str) else {}
