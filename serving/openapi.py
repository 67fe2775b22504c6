"""The description of the routes for programs, OpenAPI 3.1: bodies and answers beside what FastAPI knows of paths."""

from __future__ import annotations

from typing import Any

import fastapi
from fastapi.openapi.utils import get_openapi

_TEXT = {"type": "string"}
_INSTANCE = {
    "description": "a text, a list of texts, or an object of the model's fields (GET /info)",
    "anyOf": [_TEXT, {"type": "array"}, {"type": "object"}],
}
_PARAMETERS = {
    "type": "object",
    "properties": {
        "max_seq_length": {"type": "integer", "minimum": 1, "description": "cuts to fewer tokens"},
        "max_new_tokens": {
            "type": "integer",
            "minimum": 1,
            "description": "of what is generated; GET /info has bounds",
        },
        "num_beams": {"type": "integer", "minimum": 1, "description": "hypotheses side by side; see GET /info"},
        "temperature": {"type": "number", "exclusiveMinimum": 0, "description": "text is drawn; see GET /info"},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "description": "text is drawn; see GET /info"},
        "truncate": {"type": "boolean", "default": True, "description": "false refuses a text that would be cut"},
    },
    "additionalProperties": False,
}
_MILLISECONDS = {"type": "object", "additionalProperties": {"type": "number"}}
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "field"],
                "properties": {"code": _TEXT, "message": _TEXT, "field": {"type": ["string", "null"]}},
            }
        },
    },
    "Ask": {
        "type": "object",
        "properties": {
            "instances": {"type": "array", "items": _INSTANCE, "minItems": 1},
            "inputs": {"type": "object", "additionalProperties": {"type": "array"}},
            "parameters": _PARAMETERS,
            "stream": {"type": "boolean", "default": False},
            "signature_name": {"const": "serving_default"},
        },
        "additionalProperties": False,
    },
    "Answer": {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": {"type": "object"}},
            "outputs": {"type": "object"},
            "model": _TEXT,
            "version": _TEXT,
            "timing_ms": _MILLISECONDS,
        },
    },
    "SimpleAsk": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "object",
                "required": ["text"],
                "properties": {
                    name: {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]} for name in ("text", "text_pair")
                },
                "additionalProperties": False,
            },
            "parameters": {
                "type": "object",
                "properties": {"max_seq_len": {"type": "integer"}, "batch_size": {"type": "integer"}},
            },
        },
        "additionalProperties": False,
    },
    "SimpleAnswer": {"type": "object", "properties": {"result": {"type": "object"}}},
}


NAMED = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}]}


def _body(ask: str, answer: str) -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    return {
        **NAMED,
        "requestBody": {"required": True, "content": content(ask)},
        "responses": {"200": {"description": "the answers", "content": content(answer)}},
    }


PREDICT, SIMPLE = _body("Ask", "Answer"), _body("SimpleAsk", "SimpleAnswer")
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "one line of JSON",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
}


def described(application: fastapi.FastAPI) -> dict[str, Any]:
    """Return the description of an application's routes."""
    found = get_openapi(title=application.title, version=application.version, routes=application.routes)
    found["components"] = {"schemas": SCHEMAS}
    return found
