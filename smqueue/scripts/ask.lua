-- ask: a client without machine code asks a worker; repeating it changes nothing.
-- KEYS  requests, schedule, hint, marker, wake
-- ARGV  item, hint ms, marker s
-- Returns 1; the doorbell rings for the workers' pumps when no hint is under way
if redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[3]) then
  redis.call('RPUSH', KEYS[1], ARGV[1])
  redis.call('ZADD', KEYS[2], now, '~requests')
  redis.call('PUBLISH', KEYS[5], '')
end
return 1
