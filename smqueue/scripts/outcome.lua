-- outcome: a trigger's code has an outcome.
-- KEYS  schedule of races, schedule (or hosted) of the trigger, hint
-- ARGV  machine prefix, race prefix, entry, value (JSON), hint ms, token of the attempt or '' (not run here)
--       [, the header of its span]
-- Returns {RECORDED | STALE | LOST | LATE, 1 to send a hint}
local rec, _, trigger = parts(ARGV[3])
local race = ARGV[2] .. rec
if ARGV[6] ~= '' and redis.call('HGET', race, 'task:' .. trigger) ~= ARGV[6] then return {'STALE', 0} end
local said = record_of(ARGV[1], ARGV[2], KEYS[1], ARGV[3], ARGV[4], ARGV[7])
if said ~= 'RECORDED' then return {said, 0} end
redis.call('ZREM', KEYS[2], ARGV[3])  -- a commit of None arms it again
redis.call('HDEL', race, 'task:' .. trigger, 'until:' .. trigger, 'sent:' .. trigger, 'died:' .. trigger)
local due = redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[5])
return {said, due and 1 or 0}
