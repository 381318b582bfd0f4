"""vLLM's own load generator, ``vllm bench serve``, in this process."""

import contextlib
import io
import time

from testing.compare.systems import Load, Subject, System


def drive(system: System, load: Load, subject: Subject, seed: int) -> dict[str, float]:
    """Load a system; return what the client measured.

    Times are milliseconds; ``cpu`` is seconds for 1,000 tokens, ``cpu_request`` milliseconds a request, ``client`` the
    share of one core that the client itself took: near 1 it is the client that holds the number down.
    """
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    options = {
        "backend": "openai-chat",
        "base-url": system.url,
        "endpoint": "/v1/chat/completions",
        "model": subject.id,
        "tokenizer": subject.location,
        "dataset-name": "random",
        "random-input-len": load.tokens_in,
        "random-output-len": load.tokens_out,
        "num-prompts": load.requests,
        "seed": seed,
        # The two have different defaults, and top_p below 1 doubles the cost of a step on a CPU. The
        # request names them, so that both engines do the same work; these are vLLM's own defaults.
        "temperature": 1.0,
        "top_p": 1.0,
        "percentile-metrics": "ttft,itl",
        "metric-percentiles": "50,99",
        "ready-check-timeout-sec": 0,
        **({"request-rate": load.rate} if load.rate else {"max-concurrency": load.streams}),
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    used, own, said = system.cpu(), time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = main(parser.parse_args([*arguments, "--ignore-eos", "--disable-tqdm"]))
    used, own = system.cpu() - used, time.process_time() - own
    completed, tokens = result["completed"], result["total_output_tokens"]
    return {
        "tokens_per_second": result["output_throughput"],
        "requests_per_second": result["request_throughput"],
        "ttft_p50": result["median_ttft_ms"],
        "ttft_p99": result["p99_ttft_ms"],
        "itl_p50": result["median_itl_ms"],
        "itl_p99": result["p99_itl_ms"],
        "cpu": used / tokens * 1000,
        "cpu_request": used / completed * 1000,
        "client": own / result["duration"],
        "failed": load.requests - completed,
    }
