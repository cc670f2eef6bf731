-- begin: start the first machine of an operation, one that waits for signals and deadlines and for nothing else.
-- KEYS  machine, active, inactive, history, watchers, schedule, operations, updates, moves, bell, bells, watched, roused,
--       wake, inboxes of its signals..
-- ARGV  id of the commit, and so of the machine; operation; field; both in JSON; version; what its machine key ends with;
--       its move; the most active machines or '', park ms, watch ms, updates kept;
--       for each trigger its name in JSON, '=' or '+' (add the clock), what it waits for in JSON or after how many µs
-- Returns {now µs, 1 when watched}; nil when anything is there already, or has come: then nothing was written.
-- What it writes is what `start` in spawn.py has EXEC write, byte for byte.
local id, op, field, op_json, field_json, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], unpack(KEYS, 15)) > 0 then return nil end
if ARGV[9] ~= '' and redis.call('ZCARD', KEYS[6]) + 1 > tonumber(ARGV[9]) then return nil end

local armed, due = {}, now + ARGV[10]
for i = 13, #ARGV, 3 do
  local wait = ARGV[i + 2]
  if ARGV[i + 1] == '+' then wait = string.format('%.0f', math.ceil((now_us + wait) / 1000)) end
  local deadline = tonumber(wait)  -- the name of a signal is in quotes, and so no number
  if deadline and deadline <= now then return nil end
  due = math.min(due, deadline or due)
  armed[#armed + 1] = ARGV[i] .. ':' .. wait
end

local at = string.format('%.0f', now_us)
local machine = '["' .. id .. '",0,' .. op_json .. ',' .. field_json .. ',{' .. table.concat(armed, ',') .. '}' .. ARGV[7]
local entry = '{"machine":"' .. id .. '","step":1,"to":' .. field_json .. ',"at":' .. at .. ',"commit":"' .. id
redis.call('SET', KEYS[1], machine)
redis.call('ZADD', KEYS[6], due, KEYS[1]:match('([^:]+)$') .. ':' .. id)
rouse(KEYS[13], KEYS[14], due - now, ARGV[11])
redis.call('HSET', KEYS[2], field, '["' .. id .. '",1,' .. at .. ',' .. version .. ',0,1]')
redis.call('ZADD', KEYS[7], 'NX', now, op)
redis.call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[12], '*', 'op', op, 'entry', entry .. '","version":' .. version .. '}')
redis.call('SPUBLISH', KEYS[10], '')
redis.call('SPUBLISH', KEYS[11], '')
redis.call('HINCRBY', KEYS[9], ARGV[8], 1)
return {at, redis.call('EXISTS', KEYS[12])}
