"""A quota of tokens: so many in every minute, hour, day or month, by UTC's clock."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: What a quota may be for.
PERIODS = ("minute", "hour", "day", "month")
_TEXT = re.compile(rf"([0-9]{{1,18}})/({'|'.join(PERIODS)})")


@dataclass(frozen=True)
class Quota:
    """``tokens`` of prompts and answers together in each ``period``."""

    tokens: int
    period: str
    #: Before this nothing counts: when an operator set the count back. Unix time, seconds; 0 is never.
    counted_from: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Quota":
        """Read ``1000000/day``. Raises ``ValueError``."""
        found = _TEXT.fullmatch(text.strip())
        if not found:
            raise ValueError(f"{text!r} is no quota such as 1000000/day; it is for a {', '.join(PERIODS)}")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.tokens}/{self.period}"

    def span(self, moment: datetime) -> tuple[datetime, datetime]:
        """Return the begin of the period that a moment lies in, and of the next one; UTC."""
        moment = moment.astimezone(UTC).replace(microsecond=0)
        match self.period:
            case "minute":
                begin = moment.replace(second=0)
                return begin, begin + timedelta(minutes=1)
            case "hour":
                begin = moment.replace(second=0, minute=0)
                return begin, begin + timedelta(hours=1)
            case "day":
                begin = moment.replace(second=0, minute=0, hour=0)
                return begin, begin + timedelta(days=1)
            case "month":
                begin = moment.replace(second=0, minute=0, hour=0, day=1)
                return begin, (begin + timedelta(days=32)).replace(day=1)
        raise ValueError(f"{self.period!r} is none of {', '.join(PERIODS)}")

    def counts_since(self, moment: datetime) -> datetime:
        """Return from when on requests count at that moment."""
        return max(self.span(moment)[0], datetime.fromtimestamp(self.counted_from, UTC))
