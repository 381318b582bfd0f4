"""Log lines are JSON and carry what was bound."""

import io
import json
import logging

import logs


def test_bound_fields_are_on_every_line_inside_and_gone_after() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    formatter = logs.config("INFO")["formatters"]["json"]
    from pythonjsonlogger.json import JsonFormatter

    handler.setFormatter(
        JsonFormatter(formatter["format"], rename_fields=formatter["rename_fields"], json_ensure_ascii=False)
    )
    handler.addFilter(logs.RequestFields())
    logger = logging.getLogger("test-logs")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    logger.propagate = False
    with logs.bind(request_id="gen-1", tenant=None), logs.bind(locale="zh-CN"):
        logger.info("inside %s", "名")
    logger.info("after")
    inside, after = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (inside["message"], inside["request_id"], inside["locale"]) == ("inside 名", "gen-1", "zh-CN")
    assert "tenant" not in inside
    assert "request_id" not in after
