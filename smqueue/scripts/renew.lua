-- renew: prolong leases of a process that lives. An entry carries its arming, and goes with it: XX is the fence.
-- KEYS  schedule (or hosted)
-- ARGV  machine prefix, race prefix, lease ms, then entry and token by turns; the token of a race is its guard: a commit
--       that keeps the machine makes it due anew, which a late renewal must not put off
-- Returns the entries that are no longer held
local lost = {}
local until_ms = string.format('%.0f', now + ARGV[3])
for i = 4, #ARGV, 2 do
  local entry, token = ARGV[i], ARGV[i + 1]
  local rec, _, trigger = parts(entry)
  local held = redis.call('ZSCORE', KEYS[1], entry)
  if entry:sub(1, 1) == '~' then
    trigger = nil  -- no machine's: held for as long as it is there
  elseif held and trigger then
    held = redis.call('HGET', ARGV[2] .. rec, 'task:' .. trigger) == token
  elseif held then
    local m = machine_at(ARGV[1] .. rec)
    held = m and m.guard == token
  end
  if held then
    redis.call('ZADD', KEYS[1], 'XX', until_ms, entry)
    if trigger then redis.call('HSET', ARGV[2] .. rec, 'until:' .. trigger, until_ms) end
  else
    lost[#lost + 1] = entry
  end
end
return lost
