-- pump: when is something next due, and is the caller the one to send a hint? One process at a time is on watch, for a
-- second; the others only ask whether the watch is free.
-- KEYS  hint, schedule, watch, roused[, hosted]
-- ARGV  life of the hint's flag ms, the caller, how long a watch lasts ms
-- Returns {ms until it is to look again, 1 to send a hint, 1 when a hosted entry is due, 1 when it is on watch}
local holder, ends = (redis.call('GET', KEYS[3]) or ''):match('^(%S*) (%d+)$')
local left = ends and tonumber(ends) - now or 0
if left <= 0 or left > tonumber(ARGV[3]) then  -- it is over; or the clock was set back
  redis.call('SET', KEYS[3], ARGV[2] .. string.format(' %.0f', now + ARGV[3]), 'PX', ARGV[3])
elseif holder ~= ARGV[2] then
  return {left, 0, 0, 0}
end
redis.call('DEL', KEYS[4])  -- whatever is armed sooner from now on rings again

local function next_in(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local left = first[2] and tonumber(first[2]) - now or 3600000
  return math.max(0, left), math.max(0, -left)
end
local wait, overdue = next_in(KEYS[2])
local send, host = 0, 0
if wait == 0 then
  if redis.call('SET', KEYS[1], 'pump', 'NX', 'PX', ARGV[1]) then
    send = 1
  elseif overdue > tonumber(ARGV[1]) and redis.call('GET', KEYS[1]) ~= 'pump' then
    redis.call('SET', KEYS[1], 'pump', 'PX', ARGV[1])  -- those who set it may be cut off from the broker
    send = 1
  end
  wait = 250  -- the hint may be lost, and something else fall due meanwhile
end
if KEYS[5] then
  local hosted = next_in(KEYS[5])
  if hosted == 0 then host = 1 end
  wait = math.min(wait, hosted)
end
return {math.ceil(wait), send, host, 1}
