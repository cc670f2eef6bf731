-- retry: a quarantined machine with an outcome, or an unreadable one, is due again, and so is its triggers' code, and the
-- cancelling that it may be left of.
-- KEYS  quarantine, schedule, hint, hosted, roused, wake
-- ARGV  race prefix, entry, hint ms, how long a watch lasts ms, entry of a cancelling, then entries of triggers
-- Returns {1 when it was quarantined, 1 to send a hint}
local rec = parts(ARGV[2])
local was = redis.call('HDEL', KEYS[1], rec)
redis.pcall('HDEL', ARGV[1] .. rec, 'claims', 'alone', 'attempts', 'undo', 'undoing')
redis.call('ZADD', KEYS[2], 'XX', now, ARGV[2])
redis.call('ZADD', KEYS[2], 'XX', now, ARGV[5])
for i = 6, #ARGV do  -- parked for an hour if they fell due meanwhile
  redis.call('ZADD', KEYS[2], 'XX', now, ARGV[i])
  redis.call('ZADD', KEYS[4], 'XX', now, ARGV[i])
end
rouse(KEYS[5], KEYS[6], 0, ARGV[4])
local due = redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[3])
return {was, due and 1 or 0}
