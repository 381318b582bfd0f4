-- Appends for many writers in one call. KEYS: the outbox of usage, then log, channel and record of
-- each, then those that settlements touch; ARGV: number of writers, then of each: ttl (empty until the log ends: it was set when it was opened), previous id,
-- number of entries, what was used (empty until the attempt closes: it goes into the outbox with
-- the closing entry, or not at all), how its token limits are settled (empty where there are none), then id, kind, data
-- and tokens of each entry. Every entry is published with the id before it, and
-- with the number of its tokens instead of them. At the end the record expires with the log, so
-- that a log that has expired is never taken for a request that nobody has begun. Returns for each
-- writer the number of followers, -1 when refused, -2 when the log does not end where the writer
-- believes.

local function append(log, channel, record, at)
  local ttl, previous, count, bill, settled = ARGV[at], ARGV[at+1], tonumber(ARGV[at+2]), ARGV[at+3], ARGV[at+4]
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local held = last[1] and last[1][1] or '0-0'
  if held ~= previous then
    -- A newer attempt, or an end that is not the writer's own: refused. Else the log lost its tail,
    -- or has this batch already: the writer finds out and sends exactly the rest.
    local attempt = tonumber(string.match(held, '^(%d+)-'))
    local own = tonumber(string.match(ARGV[at+5], '^(%d+)-'))
    if attempt > own then return -1 end
    if attempt == own and last[1][2][2] == 'e' and last[1][2][4] ~= ARGV[at+4*count+3] then return -1 end
    return -2
  end
  local followers = 0
  for i = at + 5, at + 1 + 4 * count, 4 do
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
  if bill ~= '' then redis.call('XADD', KEYS[1], 'MAXLEN', '~', MAX_BILLS, '*', 'b', bill) end
  if settled ~= '' then settle_safely(settled) end
  return followers
end
local results = {}
local at = 2
for writer = 1, tonumber(ARGV[1]) do
  local key = 3 * writer - 1
  local result = append(KEYS[key], KEYS[key+1], KEYS[key+2], at)
  if type(result) == 'table' then return result end
  results[writer] = result
  at = at + 5 + 4 * tonumber(ARGV[at+2])
end
return results
