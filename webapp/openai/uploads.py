"""The views of ``/v1/uploads``: files that come in parts."""

from typing import Any

from flask import Blueprint, Response, jsonify

from services.files import NewFile
from store.files.uploads import status_of
from store.sql.file_tables import ClientFile, Upload
from webapp.http import body
from webapp.http.current import principal, services
from webapp.http.multipart import file_form
from webapp.http.parsing import parse_body
from webapp.openai import files
from webapp.openai.file_schemas import CompleteSchema, UploadSchema

bp = Blueprint("uploads", __name__, url_prefix="/v1/uploads")


@bp.post("")
def create() -> Response:
    """Begin."""
    given = parse_body(UploadSchema)
    seconds = given["expires_after"]["seconds"] if given["expires_after"] else None
    new = NewFile(given["filename"], given["purpose"], seconds)
    return jsonify(_describe(services().uploads.create(principal(), new, given["bytes"]), None))


@bp.post("/<upload_id>/parts")
@body.streamed
def add_part(upload_id: str) -> Response:
    """A part, in any order and beside others."""
    upload = services().uploads.admit_part(principal(), upload_id)
    with file_form("data", services().files.begin, services().uploads.part_limit(upload)) as form:
        part = services().uploads.add_part(upload, form.file)
    created = int(part.created_at.timestamp())
    return jsonify({"id": part.id, "object": "upload.part", "created_at": created, "upload_id": upload.id})


@bp.post("/<upload_id>/complete")
def complete(upload_id: str) -> Response:
    """Make the file of the parts."""
    given = parse_body(CompleteSchema)
    services().uploads.complete(principal(), upload_id, given["part_ids"], given["md5"])
    return jsonify(_describe(*services().uploads.find(principal(), upload_id)))


@bp.post("/<upload_id>/cancel")
def cancel(upload_id: str) -> Response:
    """Give it up."""
    return jsonify(_describe(services().uploads.cancel(principal(), upload_id), None))


def _describe(upload: Upload, file: ClientFile | None) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at.timestamp()),
        "expires_at": int(upload.expires_at.timestamp()),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": status_of(upload),
        "file": files.describe(file) if file else None,
    }
