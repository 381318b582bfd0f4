"""What the fake engine answers."""

from engines.fake import token_text


def expected_text(prompt: str, count: int) -> str:
    return "".join(token_text(prompt, index) for index in range(count))
