"""Bodies and queries of HTTP calls."""

from typing import Any

import marshmallow
from flask import request

from webapp.http import body
from webapp.schemas.loading import cached_schema, json_object, load


def parse_body(schema: type[marshmallow.Schema]) -> dict[str, Any]:
    """Return the call's JSON body as ``schema`` loads it. Raises ``InvalidRequest``."""
    return load(schema, json_object(body.read()))


def parse_query(schema: type[marshmallow.Schema]) -> dict[str, Any]:
    """Return the query as ``schema`` loads it; what it does not name is passed over. Raises ``InvalidRequest``."""
    known = {field.data_key or name for name, field in cached_schema(schema).fields.items()}
    return load(schema, {name: value for name, value in request.args.items() if name in known})
