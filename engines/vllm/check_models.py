"""``python -m engines.vllm.check_models``: what vLLM says of the entries of a model file, without a GPU.

Reads ``entries`` (id -> entry), ``base`` and ``models_root`` as JSON on stdin, and writes ``{id: fault or null}`` on
stdout. A process of its own, because the command line starts without vLLM.
"""

import json
import sys
from pathlib import Path

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engines.errors import ConfigError
from engines.model_entry import parse_entry
from engines.model_spec import ModelSpec
from engines.vllm.arguments import chat_template_text, parse_engine_args, require_known_parsers


def fault(spec: ModelSpec) -> str | None:
    """Return what vLLM would refuse of a model, in one line that names the key."""
    if spec.engine == "fake":
        return None
    try:
        require_known_parsers(spec)
        parse_engine_args(spec.id, spec.engine_args)
        template = chat_template_text(spec)
        if template is not None:
            ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except ConfigError as error:
        return str(error)
    except TemplateError as error:
        return f"model {spec.id!r}: key 'chat_template': {error}"
    return None


def main() -> None:
    asked = json.load(sys.stdin)
    base, models_root = Path(asked["base"]), Path(asked["models_root"])
    specs = [parse_entry(model_id, entry, base, models_root) for model_id, entry in asked["entries"].items()]
    json.dump({spec.id: fault(spec) for spec in specs}, sys.stdout)


if __name__ == "__main__":
    main()
