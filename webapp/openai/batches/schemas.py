"""Bodies and queries of ``/v1/batches``."""

from marshmallow import EXCLUDE, fields, validate

from services.batches import ENDPOINTS, WINDOWS
from store.sql.batches import PREFIX
from webapp.openai.file_schemas import ExpirySchema, id_of
from webapp.openai.fine_tuning_schemas import check_metadata
from webapp.schemas.loading import Digits, Name, NullIsAbsentSchema


class BatchSchema(NullIsAbsentSchema):
    """``POST /v1/batches``."""

    class Meta:
        unknown = EXCLUDE

    input_file_id = Name(required=True, validate=validate.Length(min=1, max=128))
    endpoint = fields.String(required=True, validate=validate.OneOf(ENDPOINTS))
    completion_window = fields.String(required=True, validate=validate.OneOf([*WINDOWS]))
    metadata = fields.Dict(keys=fields.String(), load_default=dict, validate=check_metadata)
    output_expires_after = fields.Nested(ExpirySchema, load_default=None)


class BatchListQuery(NullIsAbsentSchema):
    """``GET /v1/batches``."""

    limit = Digits(load_default=20, validate=validate.Range(min=1, max=100))
    after = Name(load_default=None, validate=id_of(PREFIX))
