-- postpone: a request could not be done now; it goes to the end, for later.
-- KEYS  requests
-- ARGV  item, the item as it is to be tried again up to its time (JSON), delay ms
-- Returns 1 when it was there
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[2] .. ',"due":' .. string.format('%.0f', now + ARGV[3]) .. '}')
return 1
