"""The tables of docs/reference/http_api.md, made of the server's OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from nvg.config import ServeConfig
from nvg.serving.api import create_app
from nvg.serving.routes import Service

BEGIN, END = "<!-- {}: written by python -m scripts.docs -->", "<!-- end of {} -->"


def page(text: str) -> str:
    """The page with its tables written anew between their markers. Raises ValueError where it lacks one."""
    for name, table in tables(document()).items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text or end not in text:
            raise ValueError(f"the page has no lines {begin!r} and {end!r} around the place of its table")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def document() -> dict[str, Any]:
    """The OpenAPI document of a server with keys."""
    unused: Any = None  # the document asks no engine, no model and no observer
    service = Service(unused, ServeConfig(), unused)
    app: FastAPI = create_app(service, key_hashes=frozenset({"a"}), observer=unused)
    return app.openapi()


def tables(document: dict[str, Any]) -> dict[str, str]:
    """Markdown tables by name: routes, fields of both requests, fields of an answer and of its parts."""
    schemas = document["components"]["schemas"]
    edits = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    generations = schemas["GenerationRequest"]
    common = {
        name: field for name, field in generations["properties"].items() if edits["properties"].get(name) == field
    }
    return {
        "routes": "\n".join(_routes(document)),
        "fields": _fields(common),
        "generations": _fields(_others(generations["properties"], common)),
        "edits": _fields(_others(edits["properties"], common)),
        "answer": _fields(schemas["ImagesAnswer"]["properties"]),
        "image": _fields(schemas["Image"]["properties"] | _inside(schemas, "ImageExtension")),
        "extension": _fields(_inside(schemas, "AnswerExtension")),
        "model": _fields(_inside(schemas, "ModelExtension")),
    }


def _inside(schemas: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of an extension, under their full names."""
    return {f"nvg.{field}": value for field, value in schemas[name]["properties"].items()}


def _others(fields: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in fields.items() if name not in common}


def _routes(document: dict[str, Any]) -> Iterator[str]:
    yield "| route | does | answers |\n| --- | --- | --- |"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            does = operation.get("description") or operation["summary"]
            yield f"| `{method.upper()} {path}` | {does.rstrip('.')} | {', '.join(operation['responses'])} |"


def _fields(fields: dict[str, Any]) -> str:
    rows = ["| field | value | |", "| --- | --- | --- |"]
    for name, field in fields.items():
        default = field.get("default")
        note = field.get("description", "")
        if default is not None and "const" not in field:
            note = f"{note} Default: `{default if not isinstance(default, bool) else str(default).lower()}`.".strip()
        rows.append(f"| `{name}` | {kind(field)} | {note} |")
    return "\n".join(rows)


def kind(field: dict[str, Any]) -> str:
    """The values that a field takes, in words: the alternatives of a union, a choice, a number with its range."""
    if "anyOf" in field:
        words = [kind(each) for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "object"
    if field["type"] == "array":
        return f"list of {plural(kind(field['items']))}"
    if field.get("format") == "binary":
        return "file"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
    return names.get(field["type"], field["type"]) + range_of(field)


def plural(words: str) -> str:
    """`whole number 0 ... 5` as `whole numbers 0 ... 5`, `list of ...` as `lists of ...`."""
    for one in ("whole number", "number", "list", "object"):
        if words.startswith(one):
            return f"{one}s{words.removeprefix(one)}"
    return {"text": "texts"}.get(words, words)


def range_of(field: dict[str, Any]) -> str:
    """` 1 ... 64` of a number that has limits."""
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    return "" if low is None or high is None else f" {low:g} ... {high:.10g}"
