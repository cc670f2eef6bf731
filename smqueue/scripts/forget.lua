-- forget: delete what is kept of a finished operation, unless it is active again.
-- KEYS  active, finished, then every key of the operation
-- ARGV  operation
-- Returns 1 when it was deleted
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('ZREM', KEYS[2], ARGV[1])  -- it is noted again when it ends again
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
