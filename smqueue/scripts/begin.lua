-- begin: start the first machine of an operation, one that waits for signals and deadlines and for nothing else.
-- KEYS  schedule
-- ARGV  prefix of all keys; module as part of a key; version; its move; the most active machines or '', watch ms, updates
--         kept; how many arguments its triggers take; they, see `template`
--       then of each: how many follow; id of the commit, and so of the machine; operation, and as part of a key; field; both
--         in JSON; record; what its machine key ends with; park ms; its deadlines, see `waits_from`
-- Returns of each 'now µs, 1 when watched'; nil when anything is there already, or has come: then nothing was written.
-- What it writes is what `start` in spawn.py has EXEC write, byte for byte.
local prefix, module, version = ARGV[1], ARGV[2], ARGV[3]
local at = now_us_text

local before, ending, signals = template(9, 8 + ARGV[8])
local from = callers(9 + ARGV[8])

-- unwanted: the keys that must not be there, of one caller or more.
local inbox = ':' .. module .. ':'
local function unwanted(found, first)
  local op_key, n = ARGV[first + 2], #found
  found[n + 1], found[n + 2] = prefix .. 'active:' .. op_key, prefix .. 'inactive:' .. op_key
  found[n + 3], found[n + 4] = prefix .. 'history:' .. op_key, prefix .. 'watchers:' .. op_key
  found[n + 5] = prefix .. 'machine:' .. ARGV[first + 6]
  for i = 1, #signals do found[n + 5 + i] = prefix .. 'inbox:' .. op_key .. inbox .. signals[i][1] end
  return found
end

local all = {}
for i = 1, #from do unwanted(all, from[i]) end
local none_there = many('EXISTS', '', all) == 0
local room = ARGV[5] ~= '' and ARGV[5] - redis.call('ZCARD', KEYS[1]) or #from
local watched = redis.call('EXISTS', prefix .. 'watched')

local begun, taken, replies, soonest = {}, {}, {}, nil  -- where the arguments of those are who have begun; their operations
local machines, due_at, since = {}, {}, {'NX'}
for i = 1, #from do
  local first = from[i]
  local id, op, op_key, _, op_json, field_json, rec, closes, park = unpack(ARGV, first, first + 8)
  local armed, due, due_ms
  if #begun < room and not taken[op_key] and (none_there or many('EXISTS', '', unwanted({}, first)) == 0) then
    armed, due, due_ms = waits_from(before, ending, first + 9, park)
  end
  if armed then
    local n = #begun
    begun[n + 1], taken[op_key] = first, true
    machines[2 * n + 1] = prefix .. 'machine:' .. rec
    machines[2 * n + 2] = '["' .. id .. '",0,' .. op_json .. ',' .. field_json .. ',{' .. armed .. '}' .. closes
    due_at[2 * n + 1], due_at[2 * n + 2] = due, rec .. ':' .. id
    since[2 * n + 2], since[2 * n + 3] = now_text, op
    if not soonest or due_ms < soonest then soonest = due_ms end
  end
  replies[i] = armed and at .. ' ' .. watched or false
end
if not soonest then return replies end

-- First what makes them records, on keys that are not there: an error after that, as of the updates, leaves them whole.
many('MSET', '', machines)
many('ZADD', KEYS[1], due_at)
local active, updates, bell = prefix .. 'active:', prefix .. 'updates', prefix .. 'bell:'
for _, first in ipairs(begun) do
  local active_value = '["' .. ARGV[first] .. '",1,' .. at .. ',' .. version .. ',0,1]'
  redis.call('HSET', active .. ARGV[first + 2], ARGV[first + 3], active_value)
end
rouse(prefix .. 'roused', prefix .. 'wake', soonest - now, ARGV[6])
redis.call('ZADD', prefix .. 'operations', unpack(since))
for _, first in ipairs(begun) do
  local id, op, op_key, _, _, field_json = unpack(ARGV, first, first + 5)
  redis.call('XADD', updates, 'MAXLEN', '~', ARGV[7], '*', 'op', op, 'entry', '{"machine":"' .. id
    .. '","step":1,"to":' .. field_json .. ',"at":' .. at .. ',"commit":"' .. id .. '","version":' .. version .. '}')
  redis.call('SPUBLISH', bell .. op_key, '')
end
redis.call('SPUBLISH', prefix .. 'bells', '')
redis.call('HINCRBY', prefix .. 'moves', ARGV[4], #begun)
return replies
