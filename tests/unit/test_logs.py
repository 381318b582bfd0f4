"""Log lines are JSON and carry what was bound."""

import io
import json
import logging
import subprocess
import sys

import pytest

import logs
from settings import ROOT


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


_UNFINISHED = """
import logging, logging.config, sys
import logs
half = logging.StreamHandler.__new__(logging.StreamHandler)
{step}
if sys.argv[1:]:
    logs.tolerate_unfinished_handlers()
logging.config.dictConfig({{"version": 1}})
"""


#: In the list, and without its lock yet; then without its stream.
_STEPS = ("half._name, half._closed = None, False; logging._addHandlerRef(half)", "logging.Handler.__init__(half)")


@pytest.mark.parametrize("step", _STEPS)
def test_a_handler_that_another_thread_is_just_making_harms_nobody(step: str) -> None:
    command = [sys.executable, "-c", _UNFINISHED.format(step=step)]
    # What the standard library does by itself: the day it does not, this can go.
    assert b"AttributeError" in subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30).stderr
    tolerated = subprocess.run([*command, "tolerated"], cwd=ROOT, capture_output=True, timeout=30)
    assert tolerated.returncode == 0, tolerated.stderr
