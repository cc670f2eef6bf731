-- pause: set a control, and list it among those that are set; one that is set already stays as it is.
-- KEYS  control, controls
-- ARGV  what it is about, reason
-- Returns 1 when it was not set before
local since = string.format('%.0f', now)
if not redis.call('SET', KEYS[1], 'paused ' .. since .. ' ' .. ARGV[2], 'NX') then return 0 end
redis.call('ZADD', KEYS[2], since, ARGV[1])
return 1
