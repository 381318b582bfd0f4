"""``cy-llm doctor``: looks at an installation, part by part, with a remedy for what is wrong."""

import json
from collections.abc import Iterator

import click

from cli.doctor.database_checks import look_at_database
from cli.doctor.finding import Finding, Level
from cli.doctor.host_checks import look_at_cards, look_at_disks, look_at_models, look_at_packages, look_at_ports
from cli.doctor.redis_checks import look_at_redis
from cli.redis_address import redis_url
from configuration.redis_address import parse_redis
from settings import Settings
from store.redis.client import connect

_MARKS = {Level.OK: " ", Level.WARNING: "!", Level.FAILURE: "X"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look at this installation: Redis, database, workers, disks, clocks, ports, cards, versions. Changes nothing.

    The exit status is 1 where something cannot work.
    """
    findings = list(_look(Settings.from_env_or_exit()))
    if as_json:
        click.echo(json.dumps([finding.to_dict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding.level]} {finding.part:<9} {finding.what}")
            if finding.remedy:
                click.echo(f"  {'':<9} -> {finding.remedy}")
        bad = [finding.level for finding in findings if finding.level != Level.OK]
        click.echo(f"\n{bad.count(Level.FAILURE)} failures, {bad.count(Level.WARNING)} warnings")
    if any(finding.level == Level.FAILURE for finding in findings):
        context.exit(1)


def _look(settings: Settings) -> Iterator[Finding]:
    yield from look_at_packages()
    yield from look_at_cards()
    yield from look_at_models(settings)
    address = redis_url(settings)
    with connect(address) as client:
        yield from look_at_redis(client, parse_redis(address).shown)
    yield from look_at_database(settings)
    yield from look_at_disks(settings)
    yield from look_at_ports(settings)
