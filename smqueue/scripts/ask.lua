-- ask: a client without machine code asks a worker; repeating it changes nothing.
-- KEYS  requests, schedule, marker, wake
-- ARGV  item, marker s, how many requests may wait
-- Returns 1, or 0 when so many wait already; it rings for the pump on watch
if redis.call('EXISTS', KEYS[3]) == 0 and redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
if redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[2]) then
  redis.call('RPUSH', KEYS[1], ARGV[1])
  redis.call('ZADD', KEYS[2], now, '~requests')
  redis.call('PUBLISH', KEYS[4], '')
end
return 1
