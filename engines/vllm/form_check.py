"""Why an answer of a wanted form (a JSON schema, a regular expression, a grammar) could not be begun.

vLLM's engine compiles a form after the request was taken, and where that fails it says no more than "internal server
error". Then, and only then, the form is compiled here once more, by the same library, to tell the client's fault
from the engine's.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import xgrammar

#: How long a form may take to be judged. Seconds.
_JUDGE_SECONDS = 5.0
#: Where the library says that it stands in its own sources.
_PLACE = re.compile(r"^\[[0-9:]+\] \S+:\d+: ")
#: Fields that take tokens away, and may take away what a form needs.
_NARROWING = ("allowed_token_ids", "bad_words", "logit_bias", "min_tokens")


@dataclass(frozen=True)
class Form:
    """One form that a body asks for."""

    #: The dotted field that holds it.
    field: str
    #: ``json``, ``regex`` or ``grammar``.
    kind: str
    text: str


class FormCheck:
    """Compiles forms for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._compiler: xgrammar.GrammarCompiler | None = None
        # One at a time, beside all other work: a hostile form takes long.
        self._judge = ThreadPoolExecutor(1, thread_name_prefix="form-check")

    async def judge(self, body: dict[str, Any]) -> tuple[str, str] | None:
        """As :meth:`fault`, beside the loop; a form that cannot be judged in time has no fault."""
        judged = asyncio.get_running_loop().run_in_executor(self._judge, self.fault, body)
        try:
            return await asyncio.wait_for(asyncio.shield(judged), _JUDGE_SECONDS)
        except TimeoutError:
            return None

    def fault(self, body: dict[str, Any]) -> tuple[str, str] | None:
        """Return the field and what is wrong with the form in it; None where all forms are fine. Blocks."""
        wanted = list(forms(body))
        for form in wanted:
            try:
                if not self._can_begin(form):
                    return form.field, "no text at all can have this form"
            except (RuntimeError, ValueError, TypeError) as error:
                return form.field, _PLACE.sub("", str(error)).strip()
        narrowing = [name for name in _NARROWING if body.get(name)]
        if wanted and narrowing:
            # Each is fine by itself; at some token nothing was left that both allow, and the engine gave up.
            return wanted[0].field, f"together with {' and '.join(narrowing)} it leaves no token to choose"
        return None

    def _can_begin(self, form: Form) -> bool:
        """Whether any first token is allowed."""
        if self._compiler is None:
            info = xgrammar.TokenizerInfo.from_huggingface(self._tokenizer)
            self._compiler = xgrammar.GrammarCompiler(info)
        compile_form = {
            "json": self._compiler.compile_json_schema,
            "regex": self._compiler.compile_regex,
            "grammar": self._compiler.compile_grammar,
        }[form.kind]
        compiled = compile_form(form.text)
        matcher = xgrammar.GrammarMatcher(compiled)
        mask = xgrammar.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)
        # False: every token is allowed.
        return not matcher.fill_next_token_bitmask(mask) or bool(mask.any())


def forms(body: dict[str, Any]) -> Iterator[Form]:
    """Yield the forms of a body, in the fields that vLLM reads."""
    wanted = body.get("structured_outputs")
    if isinstance(wanted, dict):
        for kind in ("json", "regex", "grammar"):
            if wanted.get(kind) is not None:
                yield Form(f"structured_outputs.{kind}", kind, _text(wanted[kind]))
    response = body.get("response_format")
    if isinstance(response, dict) and isinstance(response.get("json_schema"), dict):
        yield Form("response_format.json_schema.schema", "json", _text(response["json_schema"].get("schema") or {}))
    # Of responses, and of Anthropic's messages.
    for member in ("text", "output_config"):
        holder = body.get(member)
        wanted = holder.get("format") if isinstance(holder, dict) else None
        if isinstance(wanted, dict) and wanted.get("schema") is not None:
            yield Form(f"{member}.format.schema", "json", _text(wanted["schema"]))
    yield from _tools(body)


def _tools(body: dict[str, Any]) -> Iterator[Form]:
    """Yield the arguments' forms: of chat, of responses and of Anthropic's messages."""
    choice = body.get("tool_choice") or "auto"
    kind = choice.get("type") if isinstance(choice, dict) else choice
    tools = body.get("tools")
    # Tools are a form only where one of them must be called.
    if kind in ("auto", "none") or not isinstance(tools, list):
        return
    for index, tool in enumerate(tools):
        for path in (("function", "parameters"), ("parameters",), ("input_schema",)):
            found: Any = tool
            for name in path:
                found = found.get(name) if isinstance(found, dict) else None
            if found:
                yield Form(f"tools[{index}].{'.'.join(path)}", "json", _text(found))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
