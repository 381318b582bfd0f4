"""Training jobs and adapters in SQL, on SQLite and PostgreSQL."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from store.sql.adapters import AdapterStore
from store.sql.jobs import (
    TERMINAL,
    EventKind,
    JobStatus,
    JobStore,
)
from store.sql.leases import Lease, LeaseLostError
from store.sql.tables import TrainingJob, now


@pytest.fixture
def jobs(sessions: sessionmaker[Session]) -> JobStore:
    return JobStore(sessions)


def create(jobs: JobStore, job_id: str = "job-1", tenant: str = "mine") -> str:
    jobs.create(job_id, "me", "demo", "captain", {"params": {"epochs": 3}}, {"max_restarts": 2}, tenant)
    return job_id


def expire(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions.begin() as session:
        past = now() - timedelta(seconds=1)
        session.execute(update(TrainingJob).where(TrainingJob.id == job_id).values(lease_ends=past))


def claim(jobs: JobStore, job_id: str, runner: str = "r1") -> Lease:
    lease = jobs.claim(job_id, runner)
    assert lease is not None
    return lease


def status(jobs: JobStore, job_id: str) -> str:
    job = jobs.load(job_id)
    assert job is not None
    return job.status


def test_a_job_from_queue_to_end(jobs: JobStore) -> None:
    job_id = create(jobs)
    assert jobs.claimable() == [job_id]
    lease = claim(jobs, job_id)
    assert jobs.claimable() == []
    assert jobs.claim(job_id, "r2") is None
    jobs.progress(lease, step=1, total_steps=10)
    jobs.add_event(lease, EventKind.METRICS, 1, {"loss": 2.5}, step=1, loss=2.5)
    jobs.finish(lease, JobStatus.COMPLETED, "done", result={"kind": "adapter"})
    job = jobs.load(job_id)
    assert job is not None
    assert (job.status, job.step, job.loss, job.result) == ("completed", 1, 2.5, {"kind": "adapter"})
    assert job.ended_at is not None
    assert job.ended_at.tzinfo is not None
    kinds = [(event.kind, event.data.get("status")) for event in jobs.events(job_id)]
    assert kinds == [("status", "queued"), ("status", "running"), ("metrics", None), ("status", "completed")]
    assert [event.data for event in jobs.events(job_id, kind=EventKind.METRICS)] == [{"loss": 2.5}]


def test_of_many_runners_one_gets_the_job(jobs: JobStore) -> None:
    job_id = create(jobs)
    won: list[Lease | None] = []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        start.wait()
        won.append(jobs.claim(job_id, f"r{number}"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in won if lease is not None]) == 1


def test_a_lost_runner_is_replaced_and_fenced(jobs: JobStore, sessions: sessionmaker[Session]) -> None:
    job_id = create(jobs)
    old = claim(jobs, job_id)
    expire(sessions, job_id)
    assert jobs.claimable() == [job_id]
    new = claim(jobs, job_id, "r2")
    job = jobs.load(job_id)
    assert job is not None
    assert (job.restarts, job.runner) == (1, "r2")
    calls: list[Any] = [
        lambda: jobs.renew(old),
        lambda: jobs.progress(old, step=99),
        lambda: jobs.add_event(old, EventKind.METRICS, 99, {}),
        lambda: jobs.finish(old, JobStatus.FAILED, "late"),
    ]
    for call in calls:
        with pytest.raises(LeaseLostError):
            call()
    assert jobs.renew(new) == ""
    job = jobs.load(job_id)
    assert job is not None
    assert (job.status, job.step) == ("running", 0)
    assert all(event.step != 99 for event in jobs.events(job_id))


def test_cancel_in_every_state(jobs: JobStore, sessions: sessionmaker[Session]) -> None:
    queued = create(jobs, "job-q")
    assert jobs.cancel(queued)
    assert status(jobs, queued) == "cancelled"
    assert jobs.claim(queued, "r1") is None
    running = create(jobs, "job-r")
    lease = claim(jobs, running)
    assert jobs.cancel(running)
    assert jobs.renew(lease) == "cancelled"
    # What is cancelled does not become complete, and a pause does not undo it.
    with pytest.raises(LeaseLostError):
        jobs.finish(lease, JobStatus.COMPLETED, "done")
    assert not jobs.pause(running)
    jobs.finish(lease, JobStatus.CANCELLED, "cancelled")
    assert status(jobs, running) == "cancelled"
    assert not jobs.cancel(running)
    lost = create(jobs, "job-l")
    claim(jobs, lost)
    expire(sessions, lost)
    assert jobs.cancel(lost)
    assert status(jobs, lost) == "cancelled"


def test_pause_and_resume(jobs: JobStore) -> None:
    queued = create(jobs, "job-q")
    assert jobs.pause(queued)
    assert status(jobs, queued) == "paused"
    assert jobs.claimable() == []
    assert jobs.resume(queued)
    lease = claim(jobs, queued)
    assert jobs.pause(queued)
    assert jobs.renew(lease) == "paused"
    jobs.finish(lease, JobStatus.PAUSED, "paused")
    assert status(jobs, queued) == "paused"
    assert jobs.resume(queued)
    assert not jobs.resume(queued)
    lease = claim(jobs, queued)
    jobs.finish(lease, JobStatus.COMPLETED, "done")
    for change in (jobs.pause, jobs.resume, jobs.cancel):
        assert not change(queued)


def test_what_goes_in_transaction_with_an_end_is_written_with_it_or_not_at_all(jobs: JobStore) -> None:
    job_id = create(jobs)
    lease = claim(jobs, job_id)

    def in_transaction(session: Session) -> dict[str, Any]:
        session.add(TrainingJob(id="job-in_transaction", owner="x", status="queued", base_model="m", spec={}))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        jobs.finish(lease, JobStatus.COMPLETED, "done", in_transaction)
    assert status(jobs, job_id) == "running"
    assert jobs.load("job-in_transaction") is None


def test_pages_are_newest_first_with_a_true_total(jobs: JobStore) -> None:
    for number in range(5):
        create(jobs, f"job-{number}")
    create(jobs, "job-other", tenant="yours")
    assert jobs.cancel("job-3")
    page, total = jobs.page("mine", None, 2, 1)
    assert ([job.id for job in page], total) == (["job-3", "job-2"], 5)
    page, total = jobs.page("mine", [JobStatus.CANCELLED], 100, 0)
    assert ([job.id for job in page], total) == (["job-3"], 1)
    assert jobs.page(None, None, 100, 0)[1] == 6
    assert {JobStatus.CANCELLED, JobStatus.COMPLETED, JobStatus.FAILED} == set(TERMINAL)


@pytest.fixture
def adapters(sessions: sessionmaker[Session], tmp_path: Path) -> AdapterStore:
    return AdapterStore(sessions, tmp_path / "adapters")


def publish(
    adapters: AdapterStore, sessions: sessionmaker[Session], folder: Path, name: str = "captain", point: bool = True
) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(name)
    draft = adapters.stage(folder, ["weights"], 8, "sum")
    with sessions.begin() as session:
        adapter = adapters.add(session, draft, name, "demo", "job-1", {"loss": 0.5})
        if point:
            adapters.set_alias(session, name, adapter.version)
        return adapter.version


def test_versions_names_promotion_and_rollback(
    adapters: AdapterStore, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    source = tmp_path / "made"
    assert [publish(adapters, sessions, source) for _ in range(2)] == [1, 2]
    assert publish(adapters, sessions, source, point=False) == 3

    def aliases(text: str) -> int | None:
        found = adapters.resolve(text)
        return found.version if found else None

    assert [aliases(text) for text in ("captain", "captain@1", "captain@3", "captain@9", "nobody", "a/b", "")] == [
        2,
        1,
        3,
        None,
        None,
        None,
        None,
    ]
    assert adapters.promote("captain", 3)
    assert not adapters.promote("captain", 9)
    assert aliases("captain") == 3
    assert adapters.rollback("captain") == 2
    assert (adapters.root / "captain" / "1" / "weights").read_text() == "captain"
    assert [adapter.version for adapter in adapters.all("demo")] == [3, 2, 1]
    assert [adapter.version for adapter in adapters.current(["demo"])] == [2]
    assert adapters.all("other") == []


def test_a_deleted_version_is_hidden_at_once_and_its_folder_goes_later(
    adapters: AdapterStore, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    source = tmp_path / "made"
    for _ in range(3):
        publish(adapters, sessions, source)
    assert [adapter.version for adapter in adapters.delete("captain", 3)] == [3]
    found = adapters.resolve("captain")
    assert found is not None
    assert found.version == 2
    assert adapters.resolve("captain@3") is None
    folder = adapters.root / "captain" / "3"
    assert adapters.purge_deleted(3600) == []
    assert folder.exists()
    assert adapters.purge_deleted(-1) == ["captain@3"]
    assert not folder.exists()
    # A number is never given out twice: workers keep weights by their folder.
    assert publish(adapters, sessions, source) == 4
    assert len(adapters.delete("captain", None)) == 3
    assert adapters.resolve("captain") is None
    assert adapters.rollback("captain") is None
    assert adapters.delete("captain", None) == []
