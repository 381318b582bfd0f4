"""Items that agents send back, as an engine gets them."""

from engines.model_spec import ModelSpec
from services.inference.response_items import readable


def test_members_that_an_item_had_not_are_left_out() -> None:
    """SDKs write them out as nulls."""
    items = [
        {"type": None, "id": None, "status": None, "role": "user", "content": "x"},
        {"type": "function_call", "id": None, "status": None, "name": "f", "call_id": "k", "arguments": None},
        {"type": "function_call_output", "id": None, "call_id": "k", "output": None},
    ]
    assert readable(items, ModelSpec(id="m", model_path="m")) == [
        {"role": "user", "content": "x"},
        {"type": "function_call", "name": "f", "call_id": "k", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "k", "output": ""},
    ]
