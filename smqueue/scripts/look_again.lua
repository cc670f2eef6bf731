-- look_again: nothing to see yet in the other operation; unless it has rung since the claim, look again much later.
-- KEYS  schedule
-- ARGV  race prefix, entry, trigger, delay ms
local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
redis.call('HDEL', ARGV[1] .. parts(ARGV[2]), 'sent:' .. ARGV[3])
if score and tonumber(score) > now then redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[2]) end
return 1
