"""Work that no client waits for: saved in SQL, run once, run again when its runner is lost."""

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from settings import Settings
from store.sql import db
from store.sql.adapters import AdapterStore
from store.sql.background_jobs import BackgroundJobStore, BackgroundStatus
from store.sql.leases import LeaseLostError
from store.sql.tables import Adapter, BackgroundJob, now
from tasks.worker.background import handlers
from tasks.worker.background.handlers import HandlerContext
from tasks.worker.background.runner import MAX_ATTEMPTS, BackgroundRunner
from testing.stack import Stack, script
from testing.waiting import until


@pytest.fixture
def jobs(sessions: sessionmaker[Session]) -> BackgroundJobStore:
    return BackgroundJobStore(sessions)


def lapse(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions.begin() as session:
        past = now() - timedelta(seconds=1)
        session.execute(update(BackgroundJob).where(BackgroundJob.id == job_id).values(lease_ends=past))


def state(jobs: BackgroundJobStore, job_id: str) -> tuple[str, str]:
    job = jobs.load(job_id)
    assert job is not None
    return job.status, job.message


def test_one_of_many_gets_a_job(jobs: BackgroundJobStore) -> None:
    job_id = jobs.create("expire", {}).id
    assert jobs.claimable() == [job_id]
    claimed = []
    threads = [threading.Thread(target=lambda n=n: claimed.append(jobs.claim(job_id, f"r{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len([lease for lease in claimed if lease is not None]) == 1
    assert jobs.claimable() == []


def test_a_lost_runner_changes_nothing_any_more(jobs: BackgroundJobStore, sessions: sessionmaker[Session]) -> None:
    job_id = jobs.create("expire", {}).id
    lost = jobs.claim(job_id, "r1")
    assert lost is not None
    lapse(sessions, job_id)
    assert jobs.claimable() == [job_id]
    held = jobs.claim(job_id, "r2")
    assert held is not None
    for write in (jobs.renew, lambda lease: jobs.finish(lease, BackgroundStatus.COMPLETED)):
        with pytest.raises(LeaseLostError):
            write(lost)
    jobs.finish(held, BackgroundStatus.COMPLETED, "done")
    assert state(jobs, job_id) == ("completed", "done")
    assert jobs.claim(job_id, "r3") is None


def test_what_is_due_is_saved_once(jobs: BackgroundJobStore) -> None:
    made = []
    threads = [threading.Thread(target=lambda: made.append(jobs.create_periodic("expire", 3600))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 6
    assert len([job for job in made if job is not None]) == 1


def test_each_end_of_a_job(
    jobs: BackgroundJobStore, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: HandlerContext, payload: dict[str, object]) -> str:
        raise ValueError("a secret of the database")

    monkeypatch.setitem(handlers.HANDLERS, "fail", fail)
    monkeypatch.setitem(handlers.HANDLERS, "say", lambda context, payload: str(payload["word"]))
    runner = BackgroundRunner(HandlerContext(Settings(), sessions), "r1")
    for kind, expected in [
        ("say", ("completed", "hello")),
        ("fail", ("failed", "ValueError; the worker's log tells more")),
        ("unheard", ("failed", "No handler for the kind 'unheard'")),
    ]:
        job_id = jobs.create(kind, {"word": "hello"}).id
        runner.run(job_id)
        assert state(jobs, job_id) == expected
    given_up = jobs.create("say", {"word": "hello"}).id
    for number in range(MAX_ATTEMPTS):
        assert jobs.claim(given_up, f"lost{number}") is not None
        lapse(sessions, given_up)
    runner.run(given_up)
    assert state(jobs, given_up)[0] == "failed"


def add_adapter(sessions: sessionmaker[Session], adapters: AdapterStore, folder: Path, name: str) -> Adapter:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    staged = adapters.stage(folder, ["adapter_config.json"], 8, "sum")
    with sessions.begin() as session:
        added = adapters.add(session, staged, name, "demo", "job", {}, "acme")
        adapters.set_alias(session, name, added.version, "acme")
        return added


def test_folders_of_deleted_adapters_go_once_nobody_uses_them(
    jobs: BackgroundJobStore, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    adapters = AdapterStore(sessions, tmp_path / "adapters")
    kept, gone = (add_adapter(sessions, adapters, tmp_path / "made", name) for name in ("kept", "gone"))
    adapters.delete("gone", None, "acme")
    settings = Settings(adapters_root=adapters.root, files_root=adapters.root.parent / "files")
    runner = BackgroundRunner(HandlerContext(settings, sessions), "r1")
    first = jobs.create("expire", {}).id
    runner.run(first)
    assert state(jobs, first) == ("completed", "0 adapters, 0 files, 0 jobs, 0 records of usage")
    assert (adapters.root / gone.path).is_dir()
    with sessions.begin() as session:
        past = now() - timedelta(seconds=settings.request_timeout + settings.stream_ttl + 1)
        session.execute(update(Adapter).where(Adapter.name == "gone").values(deleted_at=past))
    second = jobs.create("expire", {}).id
    runner.run(second)
    assert state(jobs, second)[1].startswith("1 adapters")
    assert not (adapters.root / gone.path).exists()
    assert (adapters.root / kept.path).is_dir()


def test_a_worker_runs_what_is_due_and_what_was_forgotten(own_stack: Stack) -> None:
    jobs = BackgroundJobStore(db.sessions(db.connect(own_stack.database_url)))
    # Saved, and never sent: its message was lost with Redis.
    forgotten = jobs.create("expire", {}).id
    command = [
        script("celery"),
        "-A",
        "tasks",
        "worker",
        "-Q",
        "cpu-work",
        "-P",
        "threads",
        "-c",
        "2",
        "-n",
        "work@test",
    ]
    worker = own_stack.run("work", [*command, "--without-gossip", "--without-mingle"])
    until(lambda: state(jobs, forgotten)[0] == "completed", 60, "the forgotten job ran")
    until(lambda: _periodic_ran(own_stack), 60, "the periodic job ran")
    assert own_stack.stop(worker) == 0
    assert "Traceback" not in worker.log.read_text()


def _periodic_ran(stack: Stack) -> bool:
    with db.sessions(db.connect(stack.database_url))() as session:
        found = session.query(BackgroundJob).filter(BackgroundJob.id.startswith("expire-")).all()
    return any(json.dumps(job.payload) == "{}" and job.status == "completed" for job in found)
