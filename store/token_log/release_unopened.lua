-- KEYS log, channel; ARGV ttl, data of the release entry. Takes a request that no worker has
-- begun out of the way of its task: attempt 1 can then no more be opened. Returns -1 when a
-- worker was faster.

if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
redis.call('XADD', KEYS[1], '1-1', 'k', 'r', 'd', ARGV[2], 'n', '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], '0-0 1-1 r ' .. ARGV[2])
