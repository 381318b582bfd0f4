"""The scripts of the token limits; each one's file tells its arguments and what it returns."""

from pathlib import Path

#: How long a holder's count is kept that nobody asks for. Milliseconds: a day.
_KEEP_MS = 86_400_000

_FOLDER = Path(__file__).parent


def _script(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8").replace("KEEP_MS", str(_KEEP_MS))


RESERVE, CORRECT = _script("reserve"), _script("correct")
#: The functions that other scripts begin with.
SETTLE_FUNCTIONS = _script("settle")
#: ARGV: what is settled, see ``settle.lua``.
SETTLE = f"{SETTLE_FUNCTIONS}\nsettle(ARGV[1])\nreturn 1\n"
