"""``python -m testing.batch_crash POINT N``: the runner of batches, which dies when it comes to a point the Nth time.

``POINT`` is one of ``webapp.openai.batches.runner.Point``, or ``answer``: an answer has come, and half of its line is
in the journal. It dies by SIGKILL.
"""

import os
import signal
import sys
from pathlib import Path

from services.container import Services
from settings import Settings
from store.files.batch_folder import Journal, Place, Result
from store.files.files import FileStore
from store.sql import db
from store.sql.batches import BatchStore
from webapp.openai.batches.active import ActiveBatch
from webapp.openai.batches.runner import BatchRunner


def main() -> None:
    point, left = sys.argv[1], int(sys.argv[2])

    def reached(where: str, _: ActiveBatch | None) -> None:
        nonlocal left
        if where == point:
            left -= 1
            if left < 1:
                os.kill(os.getpid(), signal.SIGKILL)

    append = Journal.append

    def append_half(journal: Journal, result: Result) -> Place:
        if point == "answer" and left <= 1:
            # Half a line, on disk.
            with Path(journal.path).open("ab") as file:
                journal._file.flush()
                file.write(result.encode()[:40])
        reached("answer", None)
        return append(journal, result)

    Journal.append = append_half  # type: ignore[method-assign]
    settings = Settings.from_env()
    sessions = db.sessions(db.connect(settings.database_url))
    files = FileStore(sessions, settings.files_root)
    BatchRunner(Services.create(settings), BatchStore(sessions), files, settings.batch_lines, reached).run()
    os._exit(0)


if __name__ == "__main__":
    main()
