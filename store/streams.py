"""The token log: a Redis stream per request, written by one worker at a time, read by anyone.

One script appends and publishes, so that what a follower hears and what the log holds
cannot differ. Redis itself fences: it refuses an id that is not greater than the last
one, so a worker that was given up for dead cannot write into the stream of its successor.
"""

from collections.abc import Sequence
from typing import Any

import redis

from store import names
from store.entries import LAST_SEQUENCE, START, Entry, EntryId, Kind, encode
from store.errors import Superseded

#: Most entries a log keeps; a request may have 2**17 chunks before the oldest go.
MAX_ENTRIES = 131_072

#: KEYS log, channel; ARGV ttl, previous id, then id, kind, data for each entry. Every entry is
#: published with the id before it. Returns the number of followers, or -1 when refused.
APPEND = """
local previous = ARGV[2]
local followers = 0
for i = 3, #ARGV, 3 do
  local added = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', %d, ARGV[i], 'k', ARGV[i+1], 'd', ARGV[i+2])
  if type(added) == 'table' and added.err then return -1 end
  followers = redis.call('PUBLISH', KEYS[2], previous .. ' ' .. ARGV[i] .. ' ' .. ARGV[i+1] .. ' ' .. ARGV[i+2])
  previous = ARGV[i]
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return followers
""".replace("%d", str(MAX_ENTRIES))

#: KEYS log, channel; ARGV ttl, attempt, data of the opening entry. Returns -1 when the
#: log has ended or a newer attempt owns it.
OPEN = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local previous = '0-0'
if last[1] then
  previous = last[1][1]
  if last[1][2][2] == 'e' then return -1 end
end
local added = redis.pcall('XADD', KEYS[1], ARGV[2] .. '-1', 'k', 'o', 'd', ARGV[3])
if type(added) == 'table' and added.err then return -1 end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], previous .. ' ' .. ARGV[2] .. '-1 o ' .. ARGV[3])
"""

#: KEYS log, channel; ARGV ttl, data of the terminal entry. Ends the log in whatever attempt
#: it is, unless it has ended. Returns -1 when it has.
END = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local previous = '0-0'
local attempt = '1'
if last[1] then
  previous = last[1][1]
  attempt = string.match(previous, '^(%d+)-')
  if last[1][2][2] == 'e' then return -1 end
end
local id = attempt .. '-18446744073709551615'
redis.call('XADD', KEYS[1], id, 'k', 'e', 'd', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], previous .. ' ' .. id .. ' e ' .. ARGV[2])
"""

#: The sequence number of an attempt's opening entry.
FIRST_SEQUENCE = 1


def terminal_id(attempt: int) -> EntryId:
    return EntryId(attempt, LAST_SEQUENCE)


def read(client: redis.Redis, request_id: str, after: EntryId = START, count: int | None = None) -> list[Entry]:
    """Return the entries behind ``after``, oldest first; empty when there are none."""
    rows: Any = client.xrange(names.log(request_id), min=f"({after}", count=count)
    return entries_from_rows(rows)


def exists(client: redis.Redis, request_id: str) -> bool:
    return bool(client.exists(names.log(request_id)))


def end(client: redis.Redis, request_id: str, ttl: int, data: dict[str, Any]) -> bool:
    """Write the terminal entry from outside the worker. False when the log had ended."""
    keys = [names.log(request_id), names.log_channel(request_id)]
    script = client.register_script(END)
    return bool(script(keys=keys, args=[ttl, encode(data)]) != -1)


def entries_from_rows(rows: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [Entry(EntryId.parse(entry_id), fields[b"k"].decode(), fields[b"d"]) for entry_id, fields in rows]


def require_written(result: int, request_id: str) -> int:
    """Return the number of followers, or raise ``Superseded`` for a refused append."""
    if result == -1:
        raise Superseded(f"the token log of {request_id} has ended or belongs to a newer attempt")
    return result


__all__ = ["APPEND", "END", "FIRST_SEQUENCE", "OPEN", "Kind", "end", "entries_from_rows", "exists", "read"]
