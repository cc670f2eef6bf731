-- defer: a claimed machine did not move; look again later, or set it aside.
-- KEYS  schedule, quarantine, roused, wake
-- ARGV  machine prefix, race prefix, entry, guard (or '' when it cannot be read), delay ms, added to its failed attempts,
--       error or '' (it was not run, and the claim does not count), quarantine (JSON up to its time) or '',
--       how long a watch lasts ms
-- Returns DEFERRED, or STALE when another has moved it
local rec = parts(ARGV[3])
local m = machine_at(ARGV[1] .. rec)
if ARGV[4] ~= '' and (not m or m.guard ~= ARGV[4]) then return 'STALE' end
if not redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 'STALE' end  -- its arming is over
local race = ARGV[2] .. rec
if ARGV[7] == '' then
  redis.pcall('HINCRBY', race, 'claims', -1)
else
  redis.pcall('HDEL', race, 'claims', 'alone')
  if ARGV[6] ~= '0' then redis.pcall('HINCRBY', race, 'attempts', ARGV[6]) end
  redis.pcall('HSET', race, 'error', ARGV[7])
end
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[2], rec, ARGV[8] .. ',"at":' .. string.format('%.0f', now_us) .. '}')
end
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[5], ARGV[3])
rouse(KEYS[3], KEYS[4], ARGV[5], ARGV[9])
return 'DEFERRED'
