"""Models that answer with numbers: vectors, scores and classes, with the inputs that clients send."""

import base64
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.stack import KEY, Stack
from tests.engine.conftest import serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

_DEMO = {
    "modelPath": str(ROOT / "models" / "demo"),
    "enforceEager": True,
    "kvCacheMemoryBytes": 2**25,
    "maxModelLen": 1024,
}
#: The length of the demo model's vectors.
_SIZE = 192


def make_judge(folder: Path) -> None:
    """Write a cross-encoder: the demo model's body with a head of one class. Its numbers mean nothing."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    shutil.copytree(ROOT / "models" / "demo", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(ROOT / "models" / "demo", num_labels=1)
    config.pad_token_id = 0
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("pooling")
    make_judge(folder / "judge")
    models = {
        "words": {"modelPath": "none", "engine": "fake"},
        "vectors": {**_DEMO, "task": "embed"},
        "judge": {**_DEMO, "modelPath": str(folder / "judge"), "task": "score"},
        "kinds": {**_DEMO, "modelPath": str(folder / "judge"), "task": "classify"},
    }
    with serving(folder / "stack", models) as stack:
        yield stack


@pytest.fixture
def post(stack: Stack) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    root = stack.openai_base.removesuffix("/v1")
    with httpx.Client(base_url=root, headers=headers, timeout=60, trust_env=False) as client:
        yield lambda path, **body: client.post(path, json=body)


def refused(answer: httpx.Response) -> tuple[str | None, str]:
    """The field and the message of a refusal."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]


def test_vectors_of_texts(stack: Stack) -> None:
    with stack.openai() as client:
        texts = ["red", "blue", "red"]
        found = client.embeddings.create(model="vectors", input=texts)
        first, other, again = (each.embedding for each in found.data)
    assert found.model == "vectors" and found.usage.prompt_tokens > 0
    assert first == pytest.approx(again, abs=1e-3) and first != pytest.approx(other, abs=1e-3)
    assert sum(value * value for value in first) == pytest.approx(1.0, abs=1e-2)


def test_pairs_are_scored_and_documents_ranked(post: Any) -> None:
    for model in ("judge", "vectors"):
        scored = post("/v1/score", model=model, text_1="red", text_2=["red", "a blue house"])
        assert scored.status_code == 200, scored.text
        assert len(scored.json()["data"]) == 2
        ranked = post("/v1/rerank", model=model, query="red", documents=["a blue house", "red"], top_n=1)
        assert ranked.status_code == 200, ranked.text
        assert len(ranked.json()["results"]) == 1
    # A text is nearer to itself than to another one.
    assert ranked.json()["results"][0]["index"] == 1


def test_texts_are_classified(post: Any) -> None:
    answer = post("/v1/classify", model="kinds", input=["red", "blue"])
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2


def test_a_model_is_asked_for_what_it_is_for(stack: Stack, post: Any) -> None:
    answer = post("/v1/chat/completions", model="vectors", messages=[{"role": "user", "content": "x"}])
    assert answer.status_code == 400 and "words" in answer.json()["error"]["message"]
    answer = post("/v1/embeddings", model="words", input="x")
    assert answer.status_code == 400 and "vectors" in answer.json()["error"]["message"]
    with stack.http() as native:
        answer = native.post("/inference", json={"modelId": "judge", "prompt": "x"})
        assert answer.json()["error"]["details"][0]["type"] == "wrong_task"
        listed = {model["id"]: model["capabilities"] for model in native.get("/models").json()["models"]}
    assert listed["vectors"] == ["embed"] and "stream" in listed["words"]
    answer = post("/v1/embeddings", model="vectors", input=[])
    assert answer.status_code == 400


def test_vectors_in_both_formats_are_the_same_numbers(post: Any) -> None:
    plain = post("/v1/embeddings", model="vectors", input=["a", "b"], encoding_format=None).json()["data"]
    packed = post("/v1/embeddings", model="vectors", input=["a", "b"], encoding_format="base64").json()["data"]
    for one, other in zip(plain, packed, strict=True):
        numbers = base64.b64decode(other["embedding"])
        assert len(numbers) == 4 * _SIZE == 4 * len(one["embedding"])
        assert struct.unpack(f"<{_SIZE}f", numbers) == pytest.approx(one["embedding"], abs=1e-6)
    assert [each["index"] for each in packed] == [0, 1]


def test_tokens_are_texts_too(post: Any) -> None:
    for given, count in (([1, 2, 3], 1), ([[1, 2, 3], [4]], 2)):
        answer = post("/v1/embeddings", model="vectors", input=given)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == count


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[99_999_999]], "out of vocabulary"),
        ([[-1]], "out of vocabulary"),
        ([1, "a"], "integer"),
        ("", "empty"),
        ([], "1 to 2048"),
        (["a"] * 2049, "1 to 2048"),
        (["a", ""], "number 1"),
        ([[]], "empty"),
        (None, "input"),
        ("word " * 3000, "1024"),
        (["a", "word " * 3000], "1024"),
        ("word " * 1200, "1024"),
    ],
)
def test_texts_that_have_no_vector(post: Any, given: Any, says: str) -> None:
    param, message = refused(post("/v1/embeddings", model="vectors", input=given))
    assert param is not None and param.startswith("input") and says in message


def test_what_is_too_long_is_told_by_its_code_and_cut_only_when_asked(post: Any) -> None:
    answer = post("/v1/embeddings", model="vectors", input="word " * 1200)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    cut = post("/v1/embeddings", model="vectors", input="word " * 1200, truncate_prompt_tokens=20)
    assert cut.status_code == 200 and cut.json()["usage"]["prompt_tokens"] == 20


def test_the_models_own_size_may_be_asked_for(post: Any) -> None:
    answer = post("/v1/embeddings", model="vectors", input="x", dimensions=_SIZE, user="u")
    assert answer.status_code == 200 and len(answer.json()["data"][0]["embedding"]) == _SIZE
    for size in (8, 0, _SIZE + 1):
        assert refused(post("/v1/embeddings", model="vectors", input="x", dimensions=size))[0] == "dimensions"
    assert refused(post("/v1/embeddings", model="vectors", input="x", encoding_format="int8"))[0] == "encoding_format"


def test_a_conversation_has_a_vector_too(post: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert post("/v1/embeddings", model="vectors", messages=messages).status_code == 200
    assert refused(post("/v1/embeddings", model="vectors", messages=messages, input="x"))[0] == "input"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_best_first(post: Any, path: str) -> None:
    documents = ["no", "Paris is the capital", "x"]
    answer = post(path, model="judge", query="capital of France?", documents=documents)
    results = answer.json()["results"]
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert {each["index"]: each["document"]["text"] for each in results} == dict(enumerate(documents))
    for top, count in ((1, 1), (9, 3), (None, 3), (0, 3)):
        answer = post(path, model="judge", query="q", documents=documents, top_n=top)
        assert len(answer.json()["results"]) == count
    assert refused(post(path, model="judge", query="q", documents=documents, top_n=-1))[0] == "top_n"
    assert refused(post(path, model="judge", query="q", documents=[]))[0] == "documents"
    assert refused(post(path, model="judge", query="q", documents=["word " * 3000]))[0] == "documents"


def test_documents_in_coheres_form(post: Any) -> None:
    documents = [{"text": "a blue house"}, {"text": "red"}]
    shown = post("/v1/rerank", model="vectors", query="red", documents=documents).json()["results"]
    assert [each["document"]["text"] for each in shown] == ["red", "a blue house"]
    hidden = post("/v1/rerank", model="vectors", query="red", documents=documents, return_documents=False)
    assert [sorted(each) for each in hidden.json()["results"]] == [["index", "relevance_score"]] * 2
    assert [each["index"] for each in hidden.json()["results"]] == [1, 0]
    assert refused(post("/v1/rerank", model="vectors", query="q", documents=[{"title": "x"}]))[0] is not None


def test_scores_stay_in_the_order_that_was_given(post: Any) -> None:
    texts = ["red", "a blue house", "red"]
    scores = [each["score"] for each in post("/v1/score", model="vectors", text_1="red", text_2=texts).json()["data"]]
    assert scores[0] == pytest.approx(scores[2], abs=1e-3) and scores[1] < scores[0]
    pairs = post("/score", model="judge", text_1=["q", "r"], text_2=["a", "b"]).json()["data"]
    assert [each["index"] for each in pairs] == [0, 1]
    assert "1:N" in refused(post("/v1/score", model="judge", text_1=["q", "r"], text_2=["a", "b", "c"]))[1]
