-- KEYS log, channel, record; ARGV ttl, attempt, data of the opening entry. The log outlives the
-- record, where there is one. Returns -1 when the log has ended or a newer attempt owns it.

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
