"""``/api/v1/usage``: what was used, as JSON or as a table for a spreadsheet."""

import csv
import io
from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import validate

from services.usage import UsageReport, group_of, moment_of, zone_of
from store.sql.usage import COLUMNS, UsageQuery, UsageRow
from webapp.http.current import principal, services
from webapp.http.parsing import parse_query
from webapp.schemas.loading import Name, NullIsAbsentSchema

bp = Blueprint("usage", __name__, url_prefix="/api/v1/usage")

#: What a spreadsheet takes a cell for a formula by.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBERS = ("requests", "promptTokens", "cachedTokens", "completionTokens", "totalTokens")


class UsageQuerySchema(NullIsAbsentSchema):
    """What is asked for."""

    group = Name(load_default="")
    tenant = Name(validate=validate.Length(max=64))
    key = Name(validate=validate.Length(max=100))
    model = Name(validate=validate.Length(max=256))
    adapter = Name(validate=validate.Length(max=256))
    endpoint = Name(validate=validate.Length(max=64))
    since = Name(data_key="from", validate=validate.Length(max=40))
    until = Name(data_key="to", validate=validate.Length(max=40))
    zone = Name(load_default="UTC", validate=validate.Length(max=64))
    form = Name(data_key="format", load_default="json", validate=validate.OneOf(["json", "csv"]))


@bp.get("")
def show() -> Response:
    """Tokens and requests, one row for each of what ``group`` names: ``day``, ``tenant``, ``key``, ``model`` …"""
    given = parse_query(UsageQuerySchema)
    zone = zone_of(given["zone"])
    times = {
        name: moment_of(given[name], field, zone, is_end=name == "until")
        for name, field in (("since", "from"), ("until", "to"))
        if name in given
    }
    only: dict[str, str] = {name: given[name] for name in COLUMNS if name in given}
    query = UsageQuery(group_of([word for word in given["group"].split(",") if word]), only, zone=zone, **times)
    report = services().usage.report(principal(), query)
    return _table(report) if given["form"] == "csv" else _document(report)


def _document(report: UsageReport) -> Response:
    query = report.query
    return jsonify(
        {
            "rows": [_described(row, report) for row in report.rows],
            "total": _counts(report.total),
            "group": list(query.group),
            "from": None if query.since is None else query.since.isoformat(),
            "to": None if query.until is None else query.until.isoformat(),
            "zone": query.zone.key,
        }
    )


def _table(report: UsageReport) -> Response:
    names = [each for name in report.query.group for each in ((name, "keyName") if name == "key" else (name,))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([*names, *_NUMBERS, "zone"])
    for row in report.rows:
        described = _described(row, report)
        writer.writerow(
            [
                *(_harmless(described[name]) for name in names),
                *(described[name] for name in _NUMBERS),
                report.query.zone.key,
            ]
        )
    # With the mark by which Excel knows UTF-8.
    answer = Response(text.getvalue().encode("utf-8-sig"), content_type="text/csv; charset=utf-8")
    answer.headers["Content-Disposition"] = 'attachment; filename="usage.csv"'
    return answer


def _described(row: UsageRow, report: UsageReport) -> dict[str, Any]:
    named = {"keyName": report.key_names.get(row.of["key"], "")} if "key" in row.of else {}
    return {**row.of, **named, **_counts(row)}


def _counts(row: UsageRow) -> dict[str, int]:
    return {
        "requests": row.requests,
        "promptTokens": row.prompt_tokens,
        "cachedTokens": row.cached_tokens,
        "completionTokens": row.completion_tokens,
        "totalTokens": row.prompt_tokens + row.completion_tokens,
    }


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
