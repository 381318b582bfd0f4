"""``python -m engines.training.trainer SPEC``: train one job. Reports on standard output, logs on standard error.

Ends with 0 when the training is complete or was stopped as asked, 1 when it failed. SIGTERM
makes it save a checkpoint and leave. It dies with the process that started it.
"""

import logging
import os
import sys
from pathlib import Path

from child_process import die_with_parent
from engines.training.protocol import Channel, Event


def main() -> int:
    channel = Channel.take_stdout()
    # A quiet trainer would outlive a killed worker and train beside its successor.
    die_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    # Nothing is sent anywhere, and nothing asks.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from engines.training.spec import TrainingSpec
    from engines.training.trainer.callbacks import StopFlag
    from engines.training.trainer.errors import Stopped, to_training_error
    from engines.training.trainer.run import run

    stop = StopFlag()
    stop.install()
    try:
        run(TrainingSpec.load(Path(sys.argv[1])), channel, stop)
    except Stopped:
        return 0
    except Exception as error:
        logging.getLogger(__name__).exception("The training failed")
        training_error = to_training_error(error)
        channel.send(Event.FAILED, code=training_error.code, message=str(training_error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
