"""The gateway's /docs: its OpenAPI as one self-contained page."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI, Response

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1f5fbf"/>'
    '<path d="M4 16q12-13 24 0q-12 13-24 0z" fill="#fff"/><circle cx="16" cy="16" r="5" fill="#1f5fbf"/></svg>'
)
"""An eye. The console has the same."""

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 60rem; padding: 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: .4rem }
details { border-top: 1px solid #8886; padding: .6rem 0 }
summary { cursor: pointer; overflow-wrap: anywhere }
summary:focus-visible { outline: 3px solid #4a8fe7; outline-offset: 2px }
"""


def add_docs_page(app: FastAPI) -> None:
    """Add /docs and the icon."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page(app.openapi()), media_type="text/html; charset=utf-8")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


def page(told: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    schemas = told.get("components", {}).get("schemas", {})
    calls = "".join(
        _call(method.upper(), path, about, schemas)
        for path, methods in told["paths"].items()
        for method, about in methods.items()
    )
    title = escape(told["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="/favicon.ico">'
        f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
        f"<p>{escape(told['info'].get('description', ''))}</p>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a></p>{calls}</main></body></html>'
    )


def _call(method: str, path: str, about: dict[str, Any], schemas: dict[str, Any]) -> str:
    request = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    answer = about.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    parts = [f"<p>{escape(about.get('description', ''))}</p>"]
    for name, schema in (("Request", request), ("Answer", answer)):
        if schema:
            example = json.dumps(_shape(schema, schemas), indent=2)
            parts.append(f'<h2>{name}</h2><pre tabindex="0">{escape(example)}</pre>')
    head = f"<summary><strong>{method}</strong> <code>{escape(path)}</code></summary>"
    return f"<details>{head}{''.join(parts)}</details>"


def _shape(schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0) -> Any:
    """The form of a value of the schema: types instead of values."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if depth > 6:
        return "..."
    if "anyOf" in schema:
        return _shape(schema["anyOf"][0], schemas, depth)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return [_shape(schema.get("items", {}), schemas, depth + 1)]
    if "properties" in schema:
        return {name: _shape(each, schemas, depth + 1) for name, each in schema["properties"].items()}
    if isinstance(more := schema.get("additionalProperties"), dict):
        return {"NAME": _shape(more, schemas, depth + 1)}
    return schema.get("type", "anything")
