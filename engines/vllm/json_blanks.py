"""JSON that is asked for has a bounded number of blanks between its parts."""

from typing import Any

#: Enough for a line break and eight steps of four.
MAX_BLANKS = 33


def bound_blanks() -> None:
    """Set the bound in this process, an engine core.

    Grammars of schemas allow any number, and a model that is stuck writes nothing else until ``max_tokens``. vLLM can
    forbid blanks altogether, which is not how models write JSON. An engine keeps to the library that its first form
    was for: of the warm-up, and so xgrammar, unless an operator's ``structured_outputs_config`` names another.
    """
    import xgrammar

    compiler: Any = xgrammar.GrammarCompiler
    compile_schema = compiler.compile_json_schema

    def compile_json_schema(self: Any, schema: Any, **options: Any) -> Any:
        return compile_schema(self, schema, **{"max_whitespace_cnt": MAX_BLANKS, **options})

    compiler.compile_json_schema = compile_json_schema
