-- KEYS log, channel, record, the outbox of usage, then those that the settlement touches; ARGV ttl, data of the terminal entry, what was used
-- (may be empty), how its token limits are settled (empty where there are none). Ends the log in whatever
-- attempt it is, unless it has ended. Returns -1 when it has.

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
if ARGV[3] ~= '' then redis.call('XADD', KEYS[4], 'MAXLEN', '~', MAX_BILLS, '*', 'b', ARGV[3]) end
if ARGV[4] ~= '' then settle_safely(ARGV[4]) end
return redis.call('PUBLISH', KEYS[2], previous .. ' ' .. id .. ' e ' .. ARGV[2])
