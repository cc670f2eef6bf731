-- watch: register an entry to look again after each commit of an operation; not one whose arming is over.
-- KEYS  watchers, schedule
-- ARGV  entry
-- Returns 1 when it was registered
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('SADD', KEYS[1], ARGV[1])
return 1
