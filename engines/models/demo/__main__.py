"""``python -m engines.models.demo build|ask``."""

import argparse
import logging
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "models" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engines.models.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train the model from demo/corpus and write it to models/demo")
    build.add_argument("--corpus", type=Path, default=ROOT / "demo" / "corpus")
    build.add_argument("--target", type=Path, default=MODEL)
    build.add_argument("--rounds", type=int, default=24, help="times every wording is dressed anew (default 24)")
    build.add_argument("--epochs", type=float, default=6, help="passes over the conversations (default 6)")
    ask = commands.add_parser("ask", help="print the model's answers")
    ask.add_argument("questions", nargs="+")
    ask.add_argument("--model", type=Path, default=MODEL)
    ask.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.command == "build":
        from engines.models.demo.build import build as build_model

        build_model(arguments.corpus, arguments.target, arguments.rounds, arguments.epochs)
        return
    from engines.models.demo.ask import answer

    for question in arguments.questions:
        print(f"{question}\n  {answer(arguments.model, question, temperature=arguments.temperature)}")


if __name__ == "__main__":
    main()
