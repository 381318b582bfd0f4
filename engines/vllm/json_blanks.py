"""JSON that is asked for has a bounded number of blanks between its parts, whichever library keeps to its schema."""

from typing import Any

#: Enough for a line break and eight steps of four.
MAX_BLANKS = 33


def bound_blanks() -> None:
    """Set the bound in this process, an engine core.

    The libraries' grammars allow any number, and a model that is stuck writes nothing else until ``max_tokens``. vLLM
    can forbid blanks altogether, which is not how models write JSON.
    """
    import llguidance
    import xgrammar

    compiler: Any = xgrammar.GrammarCompiler
    matcher: Any = llguidance.LLMatcher
    compile_schema, make_grammar = compiler.compile_json_schema, matcher.grammar_from_json_schema

    def compile_json_schema(self: Any, schema: Any, **options: Any) -> Any:
        return compile_schema(self, schema, **{"max_whitespace_cnt": MAX_BLANKS, **options})

    def grammar_from_json_schema(schema: Any, defaults: Any = None, **options: Any) -> Any:
        if not (defaults or {}).get("whitespace_flexible", True):
            # An operator wants none at all.
            return make_grammar(schema, defaults=defaults, **options)
        pattern = rf"[\x20\x0A\x0D\x09]{{0,{MAX_BLANKS}}}"
        return make_grammar(schema, defaults={"whitespace_pattern": pattern, **(defaults or {})}, **options)

    compiler.compile_json_schema = compile_json_schema
    matcher.grammar_from_json_schema = staticmethod(grammar_from_json_schema)
