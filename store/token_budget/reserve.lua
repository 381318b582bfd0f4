-- Sets tokens aside for a request, for each whose limit it is, or for none of them. KEYS of each holder: its hash, its
-- sorted set of open reserves. ARGV: request, tokens, lease in ms; of each holder: tokens a minute (0: no limit), quota
-- (0: none), begin (Unix time, ms) and end (seconds) of the period that the quota is counted in. Returns 1 and of each holder what
-- it has used of its minute and of its quota and has set aside, all before this; or 0, the number of the holder that
-- refuses, which limit ('minute', 'quota') and those three; or 2 and the number of the holder whose use of the period
-- is not known. A request that has its reserve changes nothing.
--
-- The hash: 'minute', used tokens that leak away at 'rate' a minute since 'at' (ms); 'used' in the period from 'period'
-- to 'ends'; 'reserved', the sum of the open reserves; 'r:REQUEST', one of them and what was counted of it before.

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local request, amount, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local holders, result = {}, {1}
for i = 1, #KEYS / 2 do
  local hash, open, at = KEYS[2*i-1], KEYS[2*i], 4*i
  local per_minute, quota, begins, ends = tonumber(ARGV[at]), tonumber(ARGV[at+1]), ARGV[at+2], ARGV[at+3]
  for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', ms)) do
    local entry = redis.call('HGET', hash, 'r:' .. lapsed)
    if entry then
      redis.call('HINCRBY', hash, 'reserved', -tonumber(string.match(entry, '^%d+')))
      redis.call('HDEL', hash, 'r:' .. lapsed)
    end
    redis.call('ZREM', open, lapsed)
  end
  local held = redis.call('HMGET', hash, 'minute', 'at', 'reserved', 'period', 'used', 'r:' .. request)
  local minute, reserved = 0, tonumber(held[3] or 0)
  if held[1] then minute = math.max(0, held[1] - per_minute * (ms - held[2]) / 60000) end
  local used = tonumber(held[5] or 0)
  if not held[6] then
    if quota > 0 and held[4] ~= begins then return {2, i} end
    if per_minute > 0 and minute + reserved + amount > per_minute then
      return {0, i, 'minute', math.ceil(minute), used, reserved}
    end
    if quota > 0 and used + reserved + amount > quota then
      return {0, i, 'quota', math.ceil(minute), used, reserved}
    end
  end
  holders[i] = {hash, open, minute, per_minute, held[6], ends}
  result[#result+1] = math.ceil(minute)
  result[#result+1] = used
  result[#result+1] = reserved
end
for _, holder in ipairs(holders) do
  local hash, open = holder[1], holder[2]
  if holder[4] > 0 then
    redis.call('HSET', hash, 'minute', string.format('%.3f', holder[3]), 'at', ms, 'rate', holder[4])
  end
  if not holder[5] then
    redis.call('HSET', hash, 'r:' .. request, amount .. ':0', 'ends', holder[6])
    redis.call('HINCRBY', hash, 'reserved', amount)
    redis.call('ZADD', open, ms + lease, request)
  end
  -- What is gone is counted anew from the books.
  redis.call('PEXPIRE', hash, lease + KEEP_MS)
  redis.call('PEXPIRE', open, lease + KEEP_MS)
end
return result
