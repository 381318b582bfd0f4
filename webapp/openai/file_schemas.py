"""Bodies and queries of ``/v1/files`` and ``/v1/uploads``. Names and bounds are OpenAI's."""

from typing import Any

from marshmallow import EXCLUDE, ValidationError, fields, validate

from services.files import PURPOSES
from store.files import files, uploads
from store.files.ids import is_id
from webapp.schemas.loading import Digits, Integer, Name, NullIsAbsentSchema

_KEEP = validate.Range(min=3600, max=30 * 86_400)
#: OpenAI's words for what a file may be for that this server made.
_MADE = ("assistants_output", "batch_output", "fine-tune-results")


class FormExpirySchema(NullIsAbsentSchema):
    """``expires_after`` in a form: digits."""

    anchor = fields.String(required=True, validate=validate.OneOf(["created_at"]))
    seconds = Digits(required=True, validate=_KEEP)


class ExpirySchema(NullIsAbsentSchema):
    """``expires_after`` in JSON."""

    anchor = fields.String(required=True, validate=validate.OneOf(["created_at"]))
    seconds = Integer(required=True, validate=_KEEP)


class FileSchema(NullIsAbsentSchema):
    """What comes beside the file in ``POST /v1/files``."""

    class Meta:
        unknown = EXCLUDE

    purpose = fields.String(required=True, validate=validate.OneOf(PURPOSES))
    expires_after = fields.Nested(FormExpirySchema, load_default=None)


def id_of(prefix: str) -> Any:
    """Return a validator of ids that may have been made with ``prefix``."""

    def check(value: str) -> None:
        if not is_id(value, prefix):
            raise ValidationError("Must be the id of the last element of the page before.")

    return check


class FileListQuery(NullIsAbsentSchema):
    """``GET /v1/files``."""

    purpose = fields.String(load_default=None, validate=validate.OneOf([*PURPOSES, *_MADE]))
    limit = Digits(load_default=10_000, validate=validate.Range(min=1, max=10_000))
    order = fields.String(load_default="desc", validate=validate.OneOf(["asc", "desc"]))
    after = Name(load_default=None, validate=id_of(files.PREFIX))


class UploadSchema(NullIsAbsentSchema):
    """``POST /v1/uploads``."""

    filename = Name(required=True, validate=validate.Length(min=1, max=1024))
    purpose = fields.String(required=True, validate=validate.OneOf(PURPOSES))
    bytes = Integer(required=True, validate=validate.Range(min=1))
    mime_type = Name(required=True, validate=validate.Length(max=256))
    expires_after = fields.Nested(ExpirySchema, load_default=None)


class CompleteSchema(NullIsAbsentSchema):
    """``POST /v1/uploads/{id}/complete``."""

    part_ids = fields.List(
        Name(validate=id_of(uploads.PART_PREFIX)), required=True, validate=validate.Length(min=1, max=10_000)
    )
    md5 = fields.String(load_default="")


def expiry_in(form: dict[str, str]) -> dict[str, str] | None:
    """Return what a form says in ``expires_after[anchor]`` and ``expires_after[seconds]``."""
    found = {name: form[key] for name in ("anchor", "seconds") if (key := f"expires_after[{name}]") in form}
    return found or None
