"""Bodies over all endpoints, which this system and ``vllm serve`` are both asked."""

from dataclasses import dataclass
from typing import Any

from testing.tool_model import transcripts

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
EMBEDDINGS, SCORE, RERANK, CLASSIFY = "/v1/embeddings", "/v1/score", "/v1/rerank", "/classify"


@dataclass(frozen=True)
class Body:
    """One call."""

    name: str
    path: str
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        # vLLM has no logprobs of the prompt in streams.
        return self.path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES) and "prompt_logprobs" not in self.body


_A = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": _A}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
]
_FLAT = [{"type": "function", **tool["function"]} for tool in _TOOLS]
_ANTHROPIC = [{"name": "f", "input_schema": _A}, {"name": "g", "input_schema": {"type": "object"}}]
_G = {"type": "function", "function": {"name": "g"}}
_ROWS = {
    "type": "object",
    "properties": {"rows": {"type": "array", "minItems": 5, "maxItems": 5, "items": {"type": "integer"}}},
    "required": ["rows"],
    "additionalProperties": False,
}
#: Without a place for blanks, which are bounded here and not there.
_WORD = {"enum": ["red", "green"]}
_FORM = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": _WORD}}
_CALLED = [
    {"role": "user", "content": transcripts.CALLS},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "k1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}},
            {"id": "k2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "k1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "k2", "content": ""},
]
#: Given by name in every body: the two systems have other defaults.
_GREEDY = {"temperature": 0, "top_p": 1.0}


def chat(name: str, question: Any = transcripts.COUNT, **more: Any) -> Body:
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    body = {"model": "tools", "messages": messages, **_GREEDY, "max_tokens": 400, **more}
    return Body(f"chat: {name}", CHAT, body)


def completion(name: str, **more: Any) -> Body:
    body = {"model": "tools", "prompt": "Hello my name is", **_GREEDY, "max_tokens": 12, **more}
    return Body(f"completions: {name}", COMPLETIONS, body)


def response(name: str, question: Any = transcripts.COUNT, **more: Any) -> Body:
    body = {"model": "tools", "input": question, **_GREEDY, "max_output_tokens": 400, "store": False, **more}
    return Body(f"responses: {name}", RESPONSES, body)


def message(name: str, question: Any = transcripts.COUNT, **more: Any) -> Body:
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    body = {"model": "tools", "messages": messages, "max_tokens": 400, **_GREEDY, **more}
    return Body(f"messages: {name}", MESSAGES, body)


def plain(path: str, name: str, **body: Any) -> Body:
    return Body(f"{path.rpartition('/')[2]}: {name}", path, body)


GOOD = [
    chat("greedy"),
    chat("short", "hello", max_tokens=5),
    chat("max_completion_tokens", max_completion_tokens=9),
    chat(
        "system and history",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "My name is Bo."},
            {"role": "assistant", "content": "Hello Bo."},
            {"role": "user", "content": "What is my name?"},
        ],
    ),
    chat(
        "parts of text",
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Count from 1 to 80, "},
                    {"type": "text", "text": "one per line."},
                ],
            }
        ],
    ),
    chat("developer", [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hm"}]),
    chat("stop string", stop="30"),
    chat("stop strings", stop=["77", "5\n"], include_stop_str_in_output=True),
    chat("stop tokens", stop_token_ids=[300, 301, 302]),
    chat("seed", temperature=0.8, seed=7, max_tokens=40),
    chat("two answers", temperature=0.8, seed=7, n=2, max_tokens=40),
    chat("logprobs", "hm", logprobs=True, top_logprobs=3),
    chat("logprobs without alternatives", "hm", logprobs=True),
    chat("logprobs with calls", transcripts.CALLS, tools=_TOOLS, logprobs=True, top_logprobs=1),
    chat("tools auto", transcripts.CALLS, tools=_TOOLS),
    chat("tools required", transcripts.CALLS, tools=_TOOLS, tool_choice="required"),
    chat("tools named", transcripts.NO_ARGUMENTS, tools=_TOOLS, tool_choice=_G),
    chat("tools none", transcripts.CALLS, tools=_TOOLS, tool_choice="none"),
    chat("tools answered", _CALLED, tools=_TOOLS),
    chat("one call at most", transcripts.CALLS, tools=_TOOLS, parallel_tool_calls=False),
    chat("no thoughts", chat_template_kwargs={"enable_thinking": False}),
    chat("thoughts left out", include_reasoning=False),
    chat("a form", response_format=_FORM),
    chat("any JSON", response_format={"type": "json_object"}, max_tokens=60),
    chat("a choice", structured_outputs={"choice": ["red", "green"]}),
    chat("a regular expression", structured_outputs={"regex": r"\d{3}-\d{2}"}),
    chat("penalties", frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.1, max_tokens=60),
    chat("logit_bias", logit_bias={"300": 100}, max_tokens=4),
    chat("min_tokens", "hm", min_tokens=40, max_tokens=50),
    chat("ignore_eos", "hm", ignore_eos=True, max_tokens=50),
    chat("top_k and min_p", temperature=0.9, top_k=1, min_p=0.2, max_tokens=30),
    chat("bad words", bad_words=["5"], max_tokens=80),
    chat("token ids", "hm", return_token_ids=True),
    chat("prompt logprobs", "hm", prompt_logprobs=1),
    chat(
        "the turn goes on",
        [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "I have"}],
        add_generation_prompt=False,
        continue_final_message=True,
    ),
    chat("special tokens shown", "hm", skip_special_tokens=False),
    completion("greedy"),
    completion("two prompts", prompt=["Hello", "Count from 1"]),
    completion("tokens", prompt=[300, 301, 302]),
    completion("lists of tokens", prompt=[[300, 301], [302]]),
    completion("echo", echo=True),
    completion("echo and logprobs", echo=True, logprobs=2),
    completion("logprobs 0", logprobs=0),
    completion("logprobs", logprobs=3),
    completion("stop", stop=["e"], max_tokens=60),
    completion("two answers", n=2, temperature=0.8, seed=3),
    completion("a form", structured_outputs={"json": _ROWS}, max_tokens=60),
    completion("token ids", return_token_ids=True),
    completion("nothing but the prompt", echo=True, logprobs=1, max_tokens=0),
    response("a string"),
    response(
        "items",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "hm"}]},
        ],
    ),
    response("instructions", "hm", instructions="Be brief."),
    response("calls", transcripts.CALLS, tools=_FLAT),
    response("a required call", transcripts.NO_ARGUMENTS, tools=_FLAT, tool_choice="required"),
    response("a form", text={"format": {"type": "json_schema", "name": "s", "strict": True, "schema": _WORD}}),
    response("cut", max_output_tokens=20),
    response("metadata", "hm", metadata={"k": "v"}, user="u"),
    message("greedy"),
    message("system", "hm", system="Be brief."),
    message("system in blocks", "hm", system=[{"type": "text", "text": "Be brief."}]),
    message("stop sequence", stop_sequences=["30"]),
    message("cut", max_tokens=20),
    message("calls", transcripts.CALLS, tools=_ANTHROPIC),
    message("any call", transcripts.CALLS, tools=_ANTHROPIC, tool_choice={"type": "any"}),
    message("a named call", transcripts.NO_ARGUMENTS, tools=_ANTHROPIC, tool_choice={"type": "tool", "name": "g"}),
    plain(
        COUNT_TOKENS,
        "with tools",
        model="tools",
        system="Be brief.",
        tools=_ANTHROPIC,
        messages=[{"role": "user", "content": "hm"}],
    ),
    plain(TOKENIZE, "a text", model="tools", prompt="Hello é 日本"),
    plain(TOKENIZE, "as strings", model="tools", prompt="Hello", return_token_strs=True, add_special_tokens=False),
    plain(TOKENIZE, "a conversation", model="tools", messages=[{"role": "user", "content": "hm"}], tools=_TOOLS),
    plain(DETOKENIZE, "tokens", model="tools", tokens=[300, 301, 302]),
    plain(EMBEDDINGS, "a text", model="vectors", input="red"),
    plain(EMBEDDINGS, "texts", model="vectors", input=["red", "a blue house"]),
    plain(EMBEDDINGS, "base64", model="vectors", input=["red"], encoding_format="base64"),
    plain(EMBEDDINGS, "tokens", model="vectors", input=[300, 301, 302]),
    plain(EMBEDDINGS, "lists of tokens", model="vectors", input=[[300, 301], [302]]),
    plain(EMBEDDINGS, "cut", model="vectors", input="word " * 3000, truncate_prompt_tokens=20),
    plain(EMBEDDINGS, "a conversation", model="vectors", messages=[{"role": "user", "content": "hm"}]),
    plain(SCORE, "one and several", model="judge", text_1="red", text_2=["red", "a blue house"]),
    plain(SCORE, "pairs", model="judge", text_1=["red", "x"], text_2=["red", "a blue house"]),
    plain(SCORE, "queries and documents", model="judge", queries="red", documents=["red", "x"]),
    plain(SCORE, "of vectors", model="vectors", text_1="red", text_2=["red", "x"]),
    plain(RERANK, "all", model="judge", query="red", documents=["a blue house", "red", "x"]),
    plain(RERANK, "the first", model="judge", query="red", documents=["a blue house", "red"], top_n=1),
    plain(RERANK, "more than there are", model="judge", query="red", documents=["a", "b"], top_n=9),
    plain(RERANK, "of vectors", model="vectors", query="red", documents=["a blue house", "red"]),
    plain(CLASSIFY, "a text", model="kinds", input="red"),
    plain(CLASSIFY, "texts", model="kinds", input=["red", "x"]),
]

_HM = [{"role": "user", "content": "hm"}]
BAD = [
    chat("no messages", []),
    chat("messages of a wrong kind", messages="hm"),
    chat("a role that is none", [{"role": 7, "content": "x"}]),
    chat("no role", [{"content": "x"}]),
    chat("content of a wrong kind", [{"role": "user", "content": 7}]),
    chat("temperature", temperature=-1),
    chat("temperature of a wrong kind", temperature="hot"),
    chat("top_p", top_p=0),
    chat("top_k", top_k=-2),
    chat("n", n=0),
    chat("max_tokens", max_tokens=-1),
    chat("more tokens than the context", max_tokens=100_000),
    chat("a prompt beyond the context", "word " * 9000),
    chat("top_logprobs alone", top_logprobs=2),
    chat("too many top_logprobs", logprobs=True, top_logprobs=21),
    chat("a tool that is none", tools=[{"type": "function"}]),
    chat("a tool_choice that is none", tools=_TOOLS, tool_choice="any"),
    chat("a tool that is not there", tools=_TOOLS, tool_choice={"type": "function", "function": {"name": "zz"}}),
    chat("the other API's tool_choice", tools=_TOOLS, tool_choice={"type": "function", "name": "f"}),
    chat("required without tools", tool_choice="required"),
    chat("a format that is none", response_format={"type": "yaml"}),
    chat("a form without a schema", response_format={"type": "json_schema"}),
    chat(
        "a schema that is none",
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "no-such"}}},
    ),
    chat("a regular expression that is none", structured_outputs={"regex": "(?<=a)b("}),
    chat("two forms", structured_outputs={"regex": "a", "choice": ["b"]}),
    chat("logit_bias beyond the vocabulary", logit_bias={"99999999": 1}),
    chat("stop of a wrong kind", stop=7),
    chat("penalty", presence_penalty=3),
    chat("seed of a wrong kind", seed="x"),
    completion("no prompt", prompt=None),
    completion("an empty list", prompt=[]),
    completion("a prompt of a wrong kind", prompt={"a": 1}),
    completion("a token that is none", prompt=[99_999_999]),
    completion("a negative token", prompt=[-1]),
    completion("a suffix", suffix=" end"),
    completion("negative logprobs", logprobs=-2),
    completion("too many logprobs", logprobs=99),
    response("no input", None),
    response("input of a wrong kind", 7),
    response("max_output_tokens", max_output_tokens=0),
    response("a tool_choice that is none", tools=_FLAT, tool_choice="any"),
    message("no max_tokens", max_tokens=None),
    message("no messages", []),
    message("a role that is none", [{"role": "robot", "content": "x"}]),
    message("a block that is none", [{"role": "user", "content": [{"type": "no_such"}]}]),
    plain(COUNT_TOKENS, "no messages", model="tools", messages=[]),
    plain(TOKENIZE, "nothing", model="tools"),
    plain(DETOKENIZE, "words", model="tools", tokens=["a"]),
    plain(EMBEDDINGS, "nothing", model="vectors"),
    plain(EMBEDDINGS, "beyond the context", model="vectors", input="word " * 3000),
    plain(EMBEDDINGS, "an empty list", model="vectors", input=[]),
    plain(EMBEDDINGS, "a list in it that is empty", model="vectors", input=[[]]),
    plain(EMBEDDINGS, "an empty text", model="vectors", input=""),
    plain(EMBEDDINGS, "a token that is none", model="vectors", input=[[99_999_999]]),
    plain(EMBEDDINGS, "a negative token", model="vectors", input=[[-1]]),
    plain(EMBEDDINGS, "a mixed list", model="vectors", input=[1, "a"]),
    plain(EMBEDDINGS, "a format that is none", model="vectors", input="a", encoding_format="int8"),
    plain(EMBEDDINGS, "dimensions", model="vectors", input="a", dimensions=0),
    plain(EMBEDDINGS, "dimensions that it cannot", model="vectors", input="a", dimensions=8),
    plain(SCORE, "numbers that do not match", model="judge", text_1=["q", "r"], text_2=["a", "b", "c"]),
    plain(SCORE, "no second text", model="judge", text_1="q"),
    plain(RERANK, "no documents", model="judge", query="q", documents=[]),
    plain(RERANK, "top_n", model="judge", query="q", documents=["a"], top_n=-1),
    plain(CLASSIFY, "nothing", model="kinds"),
    Body("chat: an unknown model", CHAT, {"model": "nope", "messages": _HM}),
    Body("messages: an unknown model", MESSAGES, {"model": "nope", "max_tokens": 1, "messages": _HM}),
    Body("embeddings: an unknown model", EMBEDDINGS, {"model": "nope", "input": "x"}),
]
