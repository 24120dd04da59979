"""`GET /v1/openapi.json`: made from the table that the router is made from, so the two cannot differ."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hotshelf_daemon.server.calls import Route
from hotshelf_shared import errors, wire
from hotshelf_shared.recipe import FORMAT_VERSION

_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_GLOBS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code", "hint", "retryable"],
        "properties": {
            "code": {"enum": sorted(errors.BY_CODE)},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "hint": {"type": "string"},
            "retryable": {"type": "boolean"},
        },
    },
    "Acquire": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "source": {"type": "string"},
            "sources": {"type": "array", "maxItems": wire.MAX_SOURCES, "items": {}},
            "revision": _DIGEST,
            "allow_patterns": _GLOBS,
            "ignore_patterns": _GLOBS,
            "timeout_s": {"type": "number", "exclusiveMinimum": 0},
            "hold_s": {"type": "number", "exclusiveMinimum": 0},
            "client": {"type": "string", "pattern": "^[A-Za-z0-9]{8,64}$"},
        },
    },
    "Renew": {
        "type": "object",
        "additionalProperties": False,
        "required": ["client", "ids", "seen"],
        "properties": {
            "client": {"type": "string"},
            "ids": {"type": "array", "items": {"type": "string"}},
            "seen": {"type": "integer", "minimum": 0},
        },
    },
    "Lease": {
        "type": "object",
        "required": ["id", "grant", "revision", "path", "kind", "files", "skipped", "expires_s"],
        "properties": {
            "id": {"type": "string"},
            "grant": {"type": "integer"},
            "revision": _DIGEST,
            "path": {"type": "string"},
            "kind": {"enum": ["tree", "file", "bundle"]},
            "files": {"type": "array", "items": {"type": "object", "required": ["path", "digest", "size"]}},
            "skipped": {"type": "array", "items": {"type": "object", "required": ["path", "reason"]}},
            "expires_s": {"type": "number"},
        },
    },
}
_SCHEMAS |= {
    "Recipe": {
        "type": "object",
        "additionalProperties": False,
        "required": ["base", "format"],
        "properties": {
            "base": _DIGEST,
            "components": {"type": "object", "additionalProperties": _DIGEST},
            "single_file": {"type": ["object", "null"]},
            "loras": {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {}}},
            "lora_mode": {"type": "string"},
            "dtype": {"type": ["string", "null"]},
            "variant": {"type": ["string", "null"]},
            "quantization": {"type": ["object", "null"]},
            "format": {"const": FORMAT_VERSION},
        },
    },
    "Bind": {
        "type": "object",
        "additionalProperties": False,
        "required": ["recipe", "manifest"],
        "properties": {
            "recipe": {"$ref": "#/components/schemas/Recipe"},
            "manifest": {
                "type": "object",
                "additionalProperties": False,
                "required": ["version", "files"],
                "properties": {
                    "version": {"const": 1},
                    "files": {
                        "type": "object",
                        "minProperties": 1,
                        "additionalProperties": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["digest", "size"],
                            "properties": {"digest": _DIGEST, "size": {"type": "integer", "minimum": 0}},
                        },
                    },
                },
            },
            "build": {"type": "object"},
        },
    },
    "Pipeline": {
        "type": "object",
        "required": ["key", "revision", "recipe", "uid", "created_at", "build", "files", "bytes", "path", "held"],
        "properties": {
            "key": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "revision": _DIGEST,
            "recipe": {"$ref": "#/components/schemas/Recipe"},
            "uid": {"type": "integer"},
            "created_at": {"type": "string"},
            "build": {"type": "object"},
            "files": {"type": "integer"},
            "bytes": {"type": "integer"},
            "path": {"type": ["string", "null"]},
            "held": {"type": "boolean"},
        },
    },
}
_SCHEMAS |= {
    "BindBundle": {
        "type": "object",
        "additionalProperties": False,
        "required": ["digest", "size"],
        "properties": {"digest": _DIGEST, "size": {"type": "integer", "minimum": 1}},
    },
    "Bundle": {
        "type": "object",
        "required": ["environment_key", "graph_key", "digest", "size", "uid", "created_at", "revision", "path", "held"],
        "properties": {
            "environment_key": {"type": "string"},
            "graph_key": {"type": "string"},
            "digest": _DIGEST,
            "size": {"type": "integer"},
            "uid": {"type": "integer"},
            "created_at": {"type": "string"},
            "revision": _DIGEST,
            "path": {"type": ["string", "null"]},
            "held": {"type": "boolean"},
        },
    },
    "Bundles": {
        "type": "object",
        "required": ["bundles"],
        "properties": {
            "bundles": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["environment_key", "graph_key", "digest", "size", "uid", "created_at", "revision", "held"],
                },
            },
        },
    },
}
_SCHEMAS |= {
    "Refresh": {
        "type": "object",
        "additionalProperties": False,
        "required": ["source"],
        "properties": {"source": {"type": "string"}, "timeout_s": {"type": "number", "exclusiveMinimum": 0}},
    },
    "Refreshed": {
        "type": "object",
        "required": ["source", "revision", "previous", "changed", "unfrozen", "pinned"],
        "properties": {
            "source": {"type": "string"},
            "revision": _DIGEST,
            "previous": {"oneOf": [_DIGEST, {"type": "null"}]},
            "changed": {"type": "boolean"},
            "unfrozen": {"type": "boolean"},
            "pinned": {"type": "boolean"},
        },
    },
    "Rollback": {
        "type": "object",
        "additionalProperties": False,
        "required": ["source"],
        "properties": {"source": {"type": "string"}, "dry_run": {"type": "boolean"}},
    },
    "RolledBack": {
        "type": "object",
        "required": ["source", "revision", "previous", "dry_run", "refs"],
        "properties": {
            "source": {"type": "string"},
            "revision": _DIGEST,
            "previous": _DIGEST,
            "dry_run": {"type": "boolean"},
            "refs": {"type": "array", "items": {"type": "object", "required": ["revision", "was", "way"]}},
        },
    },
}
_BODIES = {
    ("POST", "/v1/leases"): "Acquire",
    ("POST", "/v1/leases/renew"): "Renew",
    ("PUT", "/v1/pipelines/{key}"): "Bind",
    ("PUT", "/v1/bundles/{environment_key}/{graph_key}"): "BindBundle",
    ("POST", "/v1/refresh"): "Refresh",
    ("POST", "/v1/rollback"): "Rollback",
}
_ANSWERS = {
    ("POST", "/v1/leases"): "Lease",
    ("GET", "/v1/pipelines/{key}"): "Pipeline",
    ("PUT", "/v1/pipelines/{key}"): "Pipeline",
    ("GET", "/v1/bundles"): "Bundles",
    ("GET", "/v1/bundles/{environment_key}"): "Bundles",
    ("GET", "/v1/bundles/{environment_key}/{graph_key}"): "Bundle",
    ("PUT", "/v1/bundles/{environment_key}/{graph_key}"): "Bundle",
    ("POST", "/v1/refresh"): "Refreshed",
    ("POST", "/v1/rollback"): "RolledBack",
}
_STREAMED = ("Lease", "Refreshed")


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "hotshelfd", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    key = (route.method, route.path)
    answer: dict[str, Any] = {"description": "Done."}
    if name := _ANSWERS.get(key):
        answer["content"] = {wire.JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        answer["content"] |= {wire.NDJSON: {}} if name in _STREAMED else {}
    if route.method == "HEAD":
        answer["headers"] = {wire.SIZE_HEADER: {"schema": {"type": "integer"}}}
    problem = {wire.PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation: dict[str, Any] = {
        "operationId": route.call.__name__,
        "summary": route.summary + (" Needs admin_uids." if route.admin else ""),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        + [{"name": name, "in": "query", "required": True, "schema": {"type": "string"}} for name in route.query],
        "responses": {"200": answer, "default": {"description": "A typed error.", "content": problem}},
    }
    if route.streams:
        operation["requestBody"] = {"required": True, "content": {wire.BYTES: {}}}
        del operation["responses"]["200"]
    for status, means in route.also.items():
        operation["responses"][status] = {**answer, "description": means}
    if body := _BODIES.get(key):
        operation["requestBody"] = {
            "required": True,
            "content": {wire.JSON: {"schema": {"$ref": f"#/components/schemas/{body}"}}},
        }
    return operation
