-- requests: what is still to be done outside of a commit, oldest first; the entry goes when nothing is left.
-- KEYS  requests, schedule
-- ARGV  how many, lease ms
-- Returns {now ms, item, ..}
local items = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
if #items == 0 then redis.call('ZREM', KEYS[2], '~requests')
else redis.call('ZADD', KEYS[2], now + ARGV[2], '~requests') end
return {string.format('%.0f', now), unpack(items)}
