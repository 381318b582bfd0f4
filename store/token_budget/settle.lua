-- Counts what a request has used in place of what was set aside for it. ``text``, JSON: 'id', the request; 'tokens',
-- all that it has used so far; 'final', whether nothing follows; 'of', for each holder 'hash', 'open', and 'minute',
-- whether it counts against the minute too. A request without a reserve (it lapsed) changes nothing: the books have it.
local function settle(text)
  local settled = cjson.decode(text)
  local time = redis.call('TIME')
  local ms = time[1] * 1000 + math.floor(time[2] / 1000)
  for _, of in ipairs(settled.of) do
    local field = 'r:' .. settled.id
    local held = redis.call('HMGET', of.hash, field, 'minute', 'at', 'rate', 'used', 'ends')
    if held[1] then
      local amount, counted = string.match(held[1], '^(%d+):(%d+)$')
      local more = math.max(0, settled.tokens - counted)
      redis.call('HINCRBY', of.hash, 'reserved', -tonumber(amount))
      if of.minute and held[2] then
        local minute = math.max(0, held[2] - held[4] * (ms - held[3]) / 60000) + more
        redis.call('HSET', of.hash, 'minute', string.format('%.3f', minute), 'at', ms)
      end
      if tonumber(held[6]) * 1000 <= ms then
        -- Another period has begun: what it has used is in the books.
        redis.call('HDEL', of.hash, 'period', 'used')
      elseif held[5] then
        redis.call('HINCRBY', of.hash, 'used', more)
      end
      if settled.final then
        redis.call('HDEL', of.hash, field)
        redis.call('ZREM', of.open, settled.id)
      else
        redis.call('HSET', of.hash, field, '0:' .. settled.tokens)
      end
    end
  end
end

-- What ends a request must not fail of its limits: a reserve that stays lapses.
local function settle_safely(text)
  local done, fault = pcall(settle, text)
  if not done then redis.log(redis.LOG_WARNING, 'a request could not be settled: ' .. tostring(fault)) end
end
