"""What is relied on of Celery 5.7 without its documentation saying so. A failure here names the part."""

import inspect

import celery
import kombu
from celery import bootsteps
from celery.worker import components, state
from celery.worker.request import Request
from kombu.transport.redis import Channel

from tasks.broker.messages import list_of

VERSION = f"celery {celery.__version__}, kombu {kombu.__version__}"


def test_the_pool_is_a_step_whose_requirements_can_be_added_to() -> None:
    assert issubclass(components.Pool, bootsteps.StartStopStep), VERSION
    assert isinstance(components.Pool.requires, tuple), VERSION


def test_a_request_is_made_of_a_message_and_can_be_told_its_life() -> None:
    wanted = {"message", "on_ack", "on_reject", "app", "hostname", "eventer", "task", "connection_errors", "body"}
    given = set(inspect.signature(Request.__init__).parameters)
    assert wanted <= given | {"headers"}, f"{VERSION}: Request takes {given}"
    for name in ("revoked", "send_event", "on_accepted", "on_success", "on_failure", "acknowledge"):
        assert callable(getattr(Request, name)), f"{VERSION}: Request.{name}"


def test_what_runs_is_counted_in_worker_state() -> None:
    assert isinstance(state.requests, dict), VERSION
    for name in ("task_reserved", "maybe_shutdown"):
        assert callable(getattr(state, name)), f"{VERSION}: celery.worker.state.{name}"


def test_a_task_may_choose_how_its_messages_are_taken() -> None:
    assert isinstance(celery.Task.Strategy, str), VERSION
    assert isinstance(celery.Task.Request, str), VERSION


def test_kombu_names_the_lists_of_priorities_as_we_do() -> None:
    channel = Channel.__new__(Channel)
    channel.priority_steps = list(range(10))
    for step in (0, 3, 9):
        assert channel._q_for_pri("gpu-infer", step) == list_of("gpu-infer", step), VERSION
