-- pause: set a control, and list it among those that are set; one that is set already stays as it is. A cancelling goes on,
-- and the pause stands when it is over.
-- KEYS  control, controls
-- ARGV  what it is about, reason, the same percent-encoded
local since = string.format('%.0f', now)
local control = redis.call('GET', KEYS[1])
local head, rest = (control or ''):match('^(cancelling %S* %d+)(.*)$')
if not control then
  redis.call('SET', KEYS[1], 'paused ' .. since .. ' ' .. ARGV[2])
elseif head and rest:sub(1, 1) ~= ':' then
  redis.call('SET', KEYS[1], head .. ':paused%20' .. since .. '%20' .. ARGV[3] .. rest)
else
  return 0
end
redis.call('ZADD', KEYS[2], since, ARGV[1])
return 1
