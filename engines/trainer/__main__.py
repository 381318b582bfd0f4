"""``python -m engines.trainer SPEC``: train one job. Reports on standard output, logs on standard error.

Ends with 0 when the training is complete or was stopped as asked, 1 when it failed. SIGTERM
makes it save a checkpoint and leave. It dies with the process that started it.
"""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from engines.trainer.protocol import Channel, Event

_PR_SET_PDEATHSIG = 1


def main() -> int:
    channel = Channel.take_stdout()
    # A quiet trainer would outlive a killed worker and train beside its successor.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    # Nothing is sent anywhere, and nothing asks.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from engines.trainer.callbacks import StopFlag
    from engines.trainer.errors import Stopped, explain
    from engines.trainer.run import run
    from engines.training.spec import TrainingSpec

    stop = StopFlag()
    stop.install()
    try:
        run(TrainingSpec.load(Path(sys.argv[1])), channel, stop)
    except Stopped:
        return 0
    except Exception as error:
        logging.getLogger(__name__).exception("The training failed")
        why = explain(error)
        channel.send(Event.FAILED, code=why.code, message=str(why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
