-- keep_end: the end of a user's task comes but once; it is kept for when its trigger is awaited, or by whom it can be read.
-- KEYS  schedule
-- ARGV  race prefix, entry, end (JSON), delay ms
-- Returns 1 when the trigger is still armed
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then return 0 end
local rec, _, trigger = parts(ARGV[2])
redis.call('HSET', ARGV[1] .. rec, 'ended:' .. trigger, ARGV[3])
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[4], ARGV[2])
return 1
