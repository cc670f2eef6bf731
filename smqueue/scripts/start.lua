-- start: a trigger's task begins, unless another runs it or its race is over.
-- KEYS  schedule (or hosted), watched, quarantine
-- ARGV  machine prefix, race prefix, active prefix, entry, token, lease ms, how often one may die, error when it did
-- Returns {RUN, now µs, 1 when watched, entry, machine, race, active}, or {STALE | LOST | RUNNING | QUARANTINED}
local entry, token = ARGV[4], ARGV[5]
local rec, arming, trigger = parts(entry)
local m, raw = machine_at(ARGV[1] .. rec)
if not m or m.arming ~= arming or not m.armed[trigger] then return {'STALE'} end
local race = ARGV[2] .. rec
local deadline = deadline_of(m)
if redis.call('HEXISTS', race, 'won') == 1 or (deadline and deadline <= now) then return {'LOST'} end
local holder = redis.call('HMGET', race, 'task:' .. trigger, 'until:' .. trigger)
if holder[1] and holder[1] ~= token and holder[2] and tonumber(holder[2]) > now then return {'RUNNING'} end
if holder[1] ~= token and redis.call('HEXISTS', race, 'sent:' .. trigger) == 0 then
  return {'STALE'}  -- a late copy of a message that was answered: its next run is in the schedule
end
if holder[1] and holder[1] ~= token then  -- the one before has not come back: its process died, or lost its lease
  redis.call('HSET', race, 'error:' .. trigger, ARGV[8])
  if redis.call('HINCRBY', race, 'died:' .. trigger, 1) > tonumber(ARGV[7]) then
    local why = cjson.encode({error = ARGV[8], op = m.op, entry = rec .. ':' .. arming})
    redis.call('HSET', KEYS[3], rec, why:sub(1, -2) .. ',"at":' .. now_us_text .. '}')
    return {'QUARANTINED'}
  end
end
local until_ms = string.format('%.0f', now + ARGV[6])
redis.call('HSET', race, 'task:' .. trigger, token, 'until:' .. trigger, until_ms)
redis.call('ZADD', KEYS[1], until_ms, entry)
local op = m.op:gsub('[^%w_.~-]', function(c) return string.format('%%%02X', c:byte()) end)
return {'RUN', now_us_text, redis.call('EXISTS', KEYS[2]), entry, raw, redis.call('HGETALL', race),
  redis.call('HGET', ARGV[3] .. op, m.field)}
