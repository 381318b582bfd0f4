"""The token log: a Redis stream per request, written by one worker at a time, read by anyone.

One script appends and publishes, so that what a follower hears and what the log holds
cannot differ. Redis itself fences: it refuses an id that is not greater than the last
one, so a worker that was given up for dead cannot write into the stream of its successor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from store import names
from store.entries import LAST_SEQUENCE, START, Entry, EntryId, Kind, encode
from store.errors import Superseded

#: Most entries a log keeps; a request may have 2**17 chunks before the oldest go.
MAX_ENTRIES = 131_072

#: Appends for many writers in one call. KEYS: log, channel and record of each; ARGV of each: ttl
#: (empty until the log ends: it was set when it was opened), previous id, number of entries, then
#: id, kind, data and tokens of each entry. Every entry is published with the id before it, and
#: with the number of its tokens instead of them. At the end the record expires with the log, so
#: that a log that has expired is never taken for a request that nobody has begun. Returns for each
#: writer the number of followers, -1 when refused, -2 when the log does not end where the writer
#: believes.
APPEND = """
local function append(log, channel, record, at)
  local ttl, previous, count = ARGV[at], ARGV[at+1], tonumber(ARGV[at+2])
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local held = last[1] and last[1][1] or '0-0'
  if held ~= previous then
    -- A newer attempt, or an end that is not the writer's own: refused. Else the log lost its tail,
    -- or has this batch already: the writer finds out and sends exactly the rest.
    local attempt = tonumber(string.match(held, '^(%d+)-'))
    local own = tonumber(string.match(ARGV[at+3], '^(%d+)-'))
    if attempt > own then return -1 end
    if attempt == own and last[1][2][2] == 'e' and last[1][2][4] ~= ARGV[at+4*count+1] then return -1 end
    return -2
  end
  local followers = 0
  for i = at + 3, at + 4 * count - 1, 4 do
    local id, kind, data, tokens = ARGV[i], ARGV[i+1], ARGV[i+2], ARGV[i+3]
    local added = redis.pcall('XADD', log, 'MAXLEN', '~', MAX_ENTRIES, id, 'k', kind, 'd', data, 'n', tokens)
    if type(added) == 'table' and added.err then
      if string.find(added.err, 'equal or smaller') then return -1 end
      return added
    end
    local counted = kind
    if tokens ~= '' then
      local _, commas = string.gsub(tokens, ',', ',')
      counted = kind .. (commas + 1)
    end
    followers = redis.call('PUBLISH', channel, previous .. ' ' .. id .. ' ' .. counted .. ' ' .. data)
    previous = id
    if kind == 'e' then redis.call('EXPIRE', record, ttl) end
  end
  if ttl ~= '' then redis.call('EXPIRE', log, ttl) end
  return followers
end
local results = {}
local at = 1
for writer = 1, #KEYS / 3 do
  local key = 3 * writer - 2
  local result = append(KEYS[key], KEYS[key+1], KEYS[key+2], at)
  if type(result) == 'table' then return result end
  results[writer] = result
  at = at + 3 + 4 * tonumber(ARGV[at+2])
end
return results
""".replace("MAX_ENTRIES", str(MAX_ENTRIES))

#: KEYS log, channel, record; ARGV ttl, attempt, data of the opening entry. The log outlives the
#: record, where there is one. Returns -1 when the log has ended or a newer attempt owns it.
OPEN = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local previous = '0-0'
if last[1] then
  previous = last[1][1]
  if last[1][2][2] == 'e' then return -1 end
end
local added = redis.pcall('XADD', KEYS[1], ARGV[2] .. '-1', 'k', 'o', 'd', ARGV[3], 'n', '')
if type(added) == 'table' and added.err then
  if not string.find(added.err, 'equal or smaller') then return added end
  -- The same opening again: its answer was lost on the way.
  if last[1] and previous == ARGV[2] .. '-1' and last[1][2][2] == 'o' and last[1][2][4] == ARGV[3] then return 1 end
  return -1
end
redis.call('EXPIRE', KEYS[1], math.max(redis.call('TTL', KEYS[3]) + 1, tonumber(ARGV[1])))
return redis.call('PUBLISH', KEYS[2], previous .. ' ' .. ARGV[2] .. '-1 o ' .. ARGV[3])
"""

#: KEYS log, channel, record; ARGV ttl, data of the terminal entry. Ends the log in whatever attempt
#: it is, unless it has ended. Returns -1 when it has.
END = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local previous = '0-0'
local attempt = '1'
if last[1] then
  previous = last[1][1]
  attempt = string.match(previous, '^(%d+)-')
  if last[1][2][2] == 'e' then return -1 end
  -- Nothing can follow in an attempt that let go.
  if last[1][2][2] == 'r' then attempt = tostring(tonumber(attempt) + 1) end
end
local id = attempt .. '-18446744073709551615'
redis.call('XADD', KEYS[1], id, 'k', 'e', 'd', ARGV[2], 'n', '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
return redis.call('PUBLISH', KEYS[2], previous .. ' ' .. id .. ' e ' .. ARGV[2])
"""

#: KEYS log, channel; ARGV ttl, data of the release entry. Takes a request that no worker has
#: begun out of the way of its task: attempt 1 can then no more be opened. Returns -1 when a
#: worker was faster.
RELEASE_UNOPENED = """
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
redis.call('XADD', KEYS[1], '1-1', 'k', 'r', 'd', ARGV[2], 'n', '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], '0-0 1-1 r ' .. ARGV[2])
"""

#: The sequence number of an attempt's opening entry.
FIRST_SEQUENCE = 1


def terminal_id(attempt: int) -> EntryId:
    return EntryId(attempt, LAST_SEQUENCE)


def read(client: redis.Redis, request_id: str, after: EntryId = START, count: int | None = None) -> list[Entry]:
    """Return the entries behind ``after``, oldest first; empty when there are none."""
    rows: Any = client.xrange(names.log(request_id), min=f"({after}", count=count)
    return entries_from_rows(rows)


def end(client: redis.Redis, request_id: str, ttl: int, data: dict[str, Any]) -> bool:
    """Write the terminal entry from outside the worker. False when the log had ended."""
    keys = [names.log(request_id), names.log_channel(request_id), names.request(request_id)]
    script = client.register_script(END)
    return bool(script(keys=keys, args=[ttl, encode(data)]) != -1)


def release_unopened(client: redis.Redis, request_id: str, ttl: int, reason: str) -> bool:
    """Keep a queued request from being begun. False when it has begun or ended."""
    keys = [names.log(request_id), names.log_channel(request_id)]
    script = client.register_script(RELEASE_UNOPENED)
    return bool(script(keys=keys, args=[ttl, encode({"reason": reason})]) != -1)


@dataclass(frozen=True)
class Delivered:
    """What a log holds of a request's text."""

    entries: tuple[Entry, ...]

    @property
    def text(self) -> str:
        return "".join(entry.json()["text"] for entry in self.entries if entry.kind == Kind.TEXT)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(int(token) for entry in self.entries if entry.tokens for token in entry.tokens.split(b","))

    @property
    def next_index(self) -> int:
        """The index of the chunk that comes next."""
        return sum(1 for entry in self.entries if entry.kind == Kind.TEXT)

    @property
    def has_body(self) -> bool:
        return any(entry.kind == Kind.BODY for entry in self.entries)

    @property
    def has_head(self) -> bool:
        return any(entry.kind == Kind.HEAD for entry in self.entries)

    @property
    def partial_usage(self) -> dict[str, int] | None:
        """The tokens delivered; the prompt's are only known to a worker. None for other kinds of answers."""
        count = len(self.tokens)
        return {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count} if count else None

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


def delivered(client: redis.Redis, request_id: str) -> Delivered:
    return Delivered(tuple(read(client, request_id)))


def entries_from_rows(rows: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [
        Entry(EntryId.parse(entry_id), fields[b"k"].decode(), fields[b"d"], fields[b"n"]) for entry_id, fields in rows
    ]


def require_written(result: int, request_id: str) -> int:
    """Return the number of followers, or raise ``Superseded`` for a refused append."""
    if result == -1:
        raise Superseded(f"the token log of {request_id} has ended or belongs to a newer attempt")
    return result
