-- resume: lift a pause, and make due what it has held, a bounded number at a time. A cancelling is not lifted, but no pause
-- comes after it.
-- KEYS  control, held, schedule, hint, controls
-- ARGV  how many, hint ms, lease ms, 1 to lift it ('': only to go on where one who did has ended), what it is about
-- Returns {how many are left, 1 to send a hint}; for those an entry is left, should the caller die
local control, rest = redis.call('GET', KEYS[1]), '~resume:' .. KEYS[1]
if control and (control:match('^%a*') ~= 'paused' or ARGV[4] == '') then
  local head, reason = control:match('^(cancelling %S* %d+):%S*(.*)$')
  if head and ARGV[4] ~= '' then
    redis.call('SET', KEYS[1], head .. reason)
    redis.call('ZREM', KEYS[5], ARGV[5])
  end
  redis.call('ZREM', KEYS[3], rest)
  return {0, 0}
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[5], ARGV[5])
local entries = redis.call('SPOP', KEYS[2], ARGV[1])
for _, entry in ipairs(entries) do redis.call('ZADD', KEYS[3], 'XX', now, entry) end
local due = #entries > 0 and redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[2])
local left = redis.call('SCARD', KEYS[2])
if left > 0 then redis.call('ZADD', KEYS[3], now + ARGV[3], rest) else redis.call('ZREM', KEYS[3], rest) end
return {left, due and 1 or 0}
