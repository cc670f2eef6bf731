-- begin: start the first machine of an operation, one that waits for signals and deadlines and for nothing else.
-- KEYS  schedule
-- ARGV  prefix of all keys; module as part of a key; version; its move; the most active machines or '', watch ms, updates kept;
--       then of each: how many follow; id of the commit, and so of the machine; operation, and as part of a key; field; both
--         in JSON; record; what its machine key ends with; park ms; its triggers, see `waits_from`
-- Returns of each {now µs, 1 when watched}; nil when anything is there already, or has come: then nothing was written.
-- What it writes is what `start` in spawn.py has EXEC write, byte for byte.
local prefix, module, version = ARGV[1], ARGV[2], ARGV[3]
local at = string.format('%.0f', now_us)

local function begin(first, last)
  local id, op, op_key, field, op_json, field_json, rec = unpack(ARGV, first, first + 6)
  local machine, active = prefix .. 'machine:' .. rec, prefix .. 'active:' .. op_key
  local wanted = {machine, active, prefix .. 'inactive:' .. op_key, prefix .. 'history:' .. op_key,
    prefix .. 'watchers:' .. op_key}
  for i = first + 9, last, 5 do
    if ARGV[i + 3] ~= '' then wanted[#wanted + 1] = prefix .. 'inbox:' .. op_key .. ':' .. module .. ':' .. ARGV[i + 3] end
  end
  if redis.call('EXISTS', unpack(wanted)) > 0 then return false end
  if ARGV[5] ~= '' and redis.call('ZCARD', KEYS[1]) + 1 > tonumber(ARGV[5]) then return false end
  local armed, due = waits_from(first + 9, last, ARGV[first + 8])
  if not armed then return false end
  redis.call('SET', machine, '["' .. id .. '",0,' .. op_json .. ',' .. field_json .. ',{' .. armed .. '}' .. ARGV[first + 7])
  redis.call('ZADD', KEYS[1], due, rec .. ':' .. id)
  rouse(prefix .. 'roused', prefix .. 'wake', due - now, ARGV[6])
  redis.call('HSET', active, field, '["' .. id .. '",1,' .. at .. ',' .. version .. ',0,1]')
  redis.call('ZADD', prefix .. 'operations', 'NX', now, op)
  redis.call('XADD', prefix .. 'updates', 'MAXLEN', '~', ARGV[7], '*', 'op', op, 'entry', '{"machine":"' .. id
    .. '","step":1,"to":' .. field_json .. ',"at":' .. at .. ',"commit":"' .. id .. '","version":' .. version .. '}')
  redis.call('SPUBLISH', prefix .. 'bell:' .. op_key, '')
  redis.call('SPUBLISH', prefix .. 'bells', '')
  redis.call('HINCRBY', prefix .. 'moves', ARGV[4], 1)
  return {at, redis.call('EXISTS', prefix .. 'watched')}
end

return each(8, begin)
