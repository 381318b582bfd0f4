"""The views of ``/v1/files``."""

from typing import Any

from flask import Blueprint, Response, jsonify, request, send_file

from services.files import NewFile, storage_errors
from store.sql.file_tables import ClientFile
from webapp.gunicorn.internals import client_socket
from webapp.gunicorn.socket_writer import bound_sending
from webapp.http import body
from webapp.http.current import principal, services
from webapp.http.multipart import file_form
from webapp.http.parsing import parse_query
from webapp.openai.file_schemas import FileListQuery, FileSchema, expiry_in
from webapp.openai.lists import page
from webapp.schemas.loading import load

bp = Blueprint("files", __name__, url_prefix="/v1/files")


@bp.post("")
@body.streamed
def create() -> Response:
    """Keep a file."""
    files = services().files
    files.admit(principal())
    with file_form("file", files.begin, files.max_bytes) as form:
        # Some clients put what is small into the query.
        given = {**request.args.to_dict(), **form.fields}
        about = load(FileSchema, {**given, "expires_after": expiry_in(given)})
        seconds = about["expires_after"]["seconds"] if about["expires_after"] else None
        return jsonify(describe(files.add(principal(), form.file, NewFile(form.filename, about["purpose"], seconds))))


@bp.get("")
def list_files() -> Response:
    """Files, newest first unless asked otherwise."""
    query = parse_query(FileListQuery)
    found, has_more = services().files.page(
        principal(), query["purpose"], query["limit"], query["after"], query["order"] == "desc"
    )
    return jsonify(page([describe(file) for file in found], has_more))


@bp.get("/<file_id>")
def show(file_id: str) -> Response:
    """What a file is."""
    return jsonify(describe(services().files.find(principal(), file_id)))


@bp.get("/<file_id>/content")
def content(file_id: str) -> Response:
    """The bytes, as they came."""
    file = services().files.find(principal(), file_id)
    path = services().files.path(file)
    connection = client_socket(request.environ)
    if connection is not None:
        bound_sending(connection)
    with storage_errors():
        response = send_file(
            path,
            mimetype="application/octet-stream",
            as_attachment=True,
            download_name=file.filename,
            etag=file.checksum,
            # What is no range of bytes is passed over, as RFC 9110 has it.
            conditional=request.headers.get("Range", "bytes=").startswith("bytes="),
            last_modified=file.created_at,
        )
    # Whatever a browser would make of it.
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@bp.delete("/<file_id>")
def delete(file_id: str) -> Response:
    """Delete a file; what was begun with it goes on."""
    services().files.delete(principal(), file_id)
    return jsonify({"id": file_id, "object": "file", "deleted": True})


def describe(file: ClientFile) -> dict[str, Any]:
    """A file in OpenAI's shape."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        # It is there when it is whole.
        "status": "processed",
        "status_details": None,
    }
