"""The client that all threads of a process share."""

import threading

from launcher.redis_server import RedisServer
from store.redis.client import MAX_CONNECTIONS, connect


def test_more_threads_than_connections_wait_for_one(redis_server: RedisServer) -> None:
    answers: list[bool] = []
    threads = 4 * MAX_CONNECTIONS
    start = threading.Barrier(threads)
    with connect(redis_server.url) as client:

        def call() -> None:
            start.wait()
            answers.extend(client.ping() for _ in range(5))

        workers = [threading.Thread(target=call) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
        assert len(answers) == 5 * threads
        assert all(answers)
        assert len(client.client_list()) <= MAX_CONNECTIONS + 1
