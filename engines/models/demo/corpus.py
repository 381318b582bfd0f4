"""From the question-and-answer text in the repository to training conversations."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: A conversation as the chat template takes it: ``[{"role": ..., "content": ...}]``.
Conversation = list[dict[str, str]]

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Answer briefly.",
    "你是一个乐于助人的助手。",
)
#: What people put around the same question. ``{q}`` is the question itself.
_WRAPPERS = {
    "zh": ("{q}", "{q}", "{q}？", "{q}？", "{q}。", "{q}！", "{q}?", "请问，{q}？", "请告诉我，{q}？"),
    "en": ("{q}", "{q}", "{q}?", "{q}?", "{q}.", "{q}!", "Please tell me: {q}?", "{q}, please."),
}


@dataclass(frozen=True)
class Topic:
    """Several wordings of one question, and the one answer to all of them."""

    language: str
    questions: tuple[str, ...]
    answer: str


def read_topics(folder: Path) -> list[Topic]:
    """Read ``zh.txt`` and ``en.txt``: blocks of ``Q:`` lines closed by one ``A:`` line.

    Raises ``ValueError`` naming file and line for anything else.
    """
    topics = []
    for path in sorted(folder.glob("*.txt")):
        questions: list[str] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            mark, _, text = line.partition(": ")
            if mark == "Q":
                questions.append(text)
            elif mark == "A" and questions:
                topics.append(Topic(path.stem, tuple(questions), text))
                questions = []
            elif line:
                raise ValueError(f"{path.name}:{number}: expected 'Q: ...' or 'A: ...', got {line[:40]!r}")
    return topics


def conversations(topics: list[Topic], rounds: int, seed: int = 0) -> Iterator[Conversation]:
    """Yield training conversations: every wording ``rounds`` times.

    Each time it is dressed differently (punctuation, a system prompt, an earlier turn), so that
    the model learns the question and not its dress.
    """
    rng = random.Random(seed)
    wordings = [(topic, question) for topic in topics for question in topic.questions]
    for _ in range(rounds):
        for topic, question in wordings:
            before, asked = rng.choice(wordings)
            history = _turn(rng, before, asked) if rng.random() < 0.15 else []
            yield [*_system(rng), *history, *_turn(rng, topic, question)]


def _system(rng: random.Random) -> Conversation:
    if rng.random() < 0.75:
        return []
    return [{"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)}]


def _turn(rng: random.Random, topic: Topic, question: str) -> Conversation:
    text = rng.choice(_WRAPPERS[topic.language]).format(q=question)
    if topic.language == "en" and rng.random() < 0.2:
        text = text.lower()
    return [{"role": "user", "content": text}, {"role": "assistant", "content": topic.answer}]
