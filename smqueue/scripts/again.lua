-- again: a trigger's code has run without an outcome, and is to run again later.
-- KEYS  schedule (or hosted) of the trigger, roused, wake
-- ARGV  race prefix, entry, token, delay ms, added to its tries, error or '', how long a watch lasts ms
-- Returns AGAIN, or STALE when another runs it or the race is over
local rec, _, trigger = parts(ARGV[2])
local race = ARGV[1] .. rec
if redis.call('HGET', race, 'task:' .. trigger) ~= ARGV[3] then return 'STALE' end
redis.call('HDEL', race, 'task:' .. trigger, 'until:' .. trigger, 'sent:' .. trigger, 'died:' .. trigger)
redis.call('HINCRBY', race, 'tries:' .. trigger, ARGV[5])
redis.call('HSET', race, 'ran:' .. trigger, string.format('%.0f', now))
if ARGV[6] ~= '' then redis.call('HSET', race, 'error:' .. trigger, ARGV[6])
else redis.call('HDEL', race, 'error:' .. trigger) end
-- The end of a user's task may have come already, and have lost: it is looked at when it is awaited again.
local delay = redis.call('HEXISTS', race, 'ended:' .. trigger) == 1 and 1000 or ARGV[4]
redis.call('ZADD', KEYS[1], 'XX', now + delay, ARGV[2])
rouse(KEYS[2], KEYS[3], delay, ARGV[7])
return 'AGAIN'
