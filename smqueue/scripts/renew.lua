-- renew: prolong leases of a process that lives. An entry carries its arming, and goes with it: XX is the fence.
-- KEYS  schedule (or hosted)
-- ARGV  race prefix, lease ms, then entry and token by turns; the token is '' for a race
-- Returns the entries that are no longer held
local lost = {}
local until_ms = string.format('%.0f', now + ARGV[2])
for i = 3, #ARGV, 2 do
  local entry, token = ARGV[i], ARGV[i + 1]
  local rec, _, trigger = parts(entry)
  local held = redis.call('ZSCORE', KEYS[1], entry)
  if held and token ~= '' then held = redis.call('HGET', ARGV[1] .. rec, 'task:' .. trigger) == token end
  if held then
    redis.call('ZADD', KEYS[1], 'XX', until_ms, entry)
    if token ~= '' then redis.call('HSET', ARGV[1] .. rec, 'until:' .. trigger, until_ms) end
  else
    lost[#lost + 1] = entry
  end
end
return lost
