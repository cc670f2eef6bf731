-- requests: what is still to be done outside of a commit, oldest first; the entry goes when nothing is left.
-- KEYS  requests, schedule
-- ARGV  from, how many, lease ms
-- Returns {now ms, item, ..}
local items = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
if redis.call('LLEN', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], '~requests')
else redis.call('ZADD', KEYS[2], now + ARGV[3], '~requests') end
return {string.format('%.0f', now), unpack(items)}
