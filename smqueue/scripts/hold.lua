-- hold: what fell due while paused or cancelling waits for the resume; due again at once if that has come meanwhile.
-- KEYS  schedule, control, held
-- ARGV  race prefix, entry, park ms
local rec = parts(ARGV[2])
redis.call('HDEL', ARGV[1] .. rec, 'claims', 'alone')
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('SADD', KEYS[3], ARGV[2])
  redis.call('ZADD', KEYS[1], 'XX', now + ARGV[3], ARGV[2])
else
  redis.call('ZADD', KEYS[1], 'XX', now, ARGV[2])
end
return 1
