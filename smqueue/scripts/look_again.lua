-- look_again: nothing to see yet in the other operation; look again much later, unless it has rung since the claim, or
-- another has claimed it since: that one may have seen more, and if it dies its lease brings the entry back.
-- KEYS  schedule
-- ARGV  race prefix, entry, trigger, delay ms, the score that the claim gave it
local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or '')
local ours = score and score == tonumber(ARGV[5])
if ours or score and score <= now then redis.call('HDEL', ARGV[1] .. parts(ARGV[2]), 'sent:' .. ARGV[3]) end
if ours then redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[2]) end
return 1
