-- Sets what a holder has used of its quota to what the books say, where that is all of it. KEYS: its hash, the outbox
-- of usage. ARGV: begin of the period, what the hash held when the books were read ('' where the period was another),
-- what the books say. Returns 1 when it was set: nothing was counted meanwhile, and nothing waits to be booked. A
-- period of which nothing is known is taken over in any case, and looked at again soon ('checked': Redis time, ms).

local held = redis.call('HMGET', KEYS[1], 'period', 'used')
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local waiting = redis.call('XLEN', KEYS[2])
if held[1] ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'period', ARGV[1], 'used', ARGV[3], 'checked', waiting == 0 and ms or 0)
  redis.call('PEXPIRE', KEYS[1], KEEP_MS)
  return 1
end
if waiting > 0 or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'used', ARGV[3], 'checked', ms)
return 1
