-- move: a machine leaves its state for another one, which is terminal or waits for signals and deadlines and nothing else.
-- KEYS  schedule, and what handlers write
-- ARGV  prefix of all keys; watch ms, updates kept; of the state left: its module and its type as parts of a key, how many of
--         its signals it may be registered for, how many of its other triggers are in the schedule; how it moves; 'end' when
--         the state entered is terminal, ms after which its operation may be forgotten then or ''; '1' when either state may be
--         there under another field; how many arguments the triggers of the state entered take; those signals as parts of a key,
--         each with the name of its trigger; those other triggers; the triggers of the state entered, see `template`
--       then of each: how many follow; operation, and as part of a key; id of the commit; of the state left: field, record,
--         guard, arming, the entry of its adding if that is not in the history yet or '', the record that stays of it; of
--         the state entered: field, record, its step, what is stored of it, active or (terminal) inactive; unless that is
--         terminal how its machine key begins and ends, park ms, its deadlines, see `waits_from`; the handler's commands, each
--         with its length in front. A NUL stands for now, in µs.
-- Returns of each 'now µs, what failed while the rest was applied'; nil when it takes a look to say what is to be done:
-- then nothing was written. What it writes is what `_plan` in transition.py has EXEC write, byte for byte.
local prefix, module, ends = ARGV[1], ARGV[4], ARGV[9] == 'end'
local scheduled = 13 + 2 * ARGV[6]
local after = scheduled + ARGV[7]
local before, ending, signals = template(after, after - 1 + ARGV[12])
local at = now_us_text
local twice, waited_for = false, {}
for i = 13, scheduled - 1, 2 do twice, waited_for[ARGV[i]] = twice or waited_for[ARGV[i]], true end
local forget_at = ARGV[10] ~= '' and string.format('%.0f', now + ARGV[10])
local of_module = prefix .. 'control:module:' .. module
local of_type = of_module .. ':' .. ARGV[5]

local KINDS = {HSET = 'hash', HDEL = 'hash', HINCRBY = 'hash', SADD = 'set', SREM = 'set', ZADD = 'zset', ZREM = 'zset',
  RPUSH = 'list', INCRBY = 'string'}

-- fits: whether a command of the handler cannot fail where its neighbours are applied. That its user may do it to this key,
-- or on this channel, is asked once: most handlers of a run write to the same.
local allowed, counters = {}, {}  -- counters: what those are that this run has incremented
local function fits(first, last)
  local name, key = ARGV[first], ARGV[first + 1]
  local what = name .. ' ' .. key
  if allowed[what] == nil then allowed[what] = redis.acl_check_cmd(unpack(ARGV, first, last)) end
  if not allowed[what] then return false end
  local number
  if name == 'INCRBY' then
    local count = counters[key]
    if count then return count < 1e15 and count > -1e15 end
    number = redis.pcall('GET', key)
  elseif name == 'HINCRBY' then
    number = redis.pcall('HGET', key, ARGV[first + 2])
  elseif KINDS[name] then
    local kind = redis.call('TYPE', key).ok
    return kind == 'none' or kind == KINDS[name]
  end
  if type(number) == 'table' then return false end
  return not number or number == '0' or #number <= 15 and number:find('^%-?[1-9]%d*$') ~= nil
end

local from, to = callers(after + ARGV[12])

-- What one look for all callers shows: their machines, and whether any of what must not be there is.
local machines, unwanted, pasts = {}, {of_module, of_type}, {}

-- unwanted_of: the keys of one caller of which none may be there.
local function unwanted_of(found, first)
  local op_key, n = ARGV[first + 1], #found
  found[n + 1], found[n + 2] = prefix .. 'watchers:' .. op_key, prefix .. 'control:' .. op_key
  for i = 1, #signals do found[n + 2 + i] = prefix .. 'inbox:' .. op_key .. ':' .. module .. ':' .. signals[i][1] end
  return found
end

for i = 1, #from do
  local first = from[i]
  machines[i] = prefix .. 'machine:' .. ARGV[first + 4]
  unwanted_of(unwanted, first)
  if ARGV[first + 7] ~= '' then
    pasts[#pasts + 1] = prefix .. 'history:' .. ARGV[first + 1]
    pasts[#pasts + 1] = prefix .. 'inactive:' .. ARGV[first + 1]
  end
end
local raws, none_unwanted, none_begun = texts(machines), many('EXISTS', '', unwanted) == 0, many('EXISTS', '', pasts) == 0

-- stamped: with the clock where a NUL is.
local function stamped(text)
  local found = text:find('\0', 1, true)
  while found do
    text = text:sub(1, found - 1) .. at .. text:sub(found + 1)
    found = text:find('\0', found, true)
  end
  return text
end

-- What is written for all callers at once.
local moved, over, gone, given_up, armed_keys, due_at = 0, {}, {}, {}, {}, {}
local ended, forgotten, since, soonest = {}, {}, {}, nil
local left, written = {}, {}  -- machines and operations: what was seen of them before is not so any more

-- put: from the first write on all is applied, whatever fails: as in EXEC. The first failure is kept.
local torn = ''
local function put(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if torn == '' then torn = (...) .. ' ' .. reply.err end
  return false
end

local function move(first, last, i)
  local op, op_key, id, field, rec, guard, arming, adding, kept, to_field, to_rec, step, there = unpack(ARGV, first, first + 12)
  local machine, active, inactive = prefix .. 'machine:' .. rec, prefix .. 'active:' .. op_key, prefix .. 'inactive:' .. op_key
  local history = prefix .. 'history:' .. op_key
  local writes = ends and first + 13 or first + 16 + #before

  local raw, expected = not left[machine] and raws[i], '["' .. guard .. '",'
  if not raw or raw:sub(1, #expected) ~= expected then return false end
  if not none_unwanted and redis.call('EXISTS', of_module, of_type, unpack(unwanted_of({}, first))) > 0 then return false end
  local alone = adding ~= '' and (none_begun and not written[op_key] or redis.call('EXISTS', history, inactive) == 0)
  if not alone then
    if ARGV[11] ~= '' or redis.call('HEXISTS', active, to_field) == 1 then return false end
    local past = redis.call('HMGET', inactive, field, to_field)
    if past[1] or past[2] then return false end
  end
  local armed, due, due_ms
  if not ends then
    armed, due, due_ms = waits_from(before, ending, first + 16, ARGV[first + 15])
    if not armed then return false end
  end
  i = writes
  while i <= last do
    if not fits(i + 1, i + ARGV[i]) then return false end
    i = i + 1 + ARGV[i]
  end

  step, kept, there = stamped(step), stamped(kept), stamped(there)
  local begun = alone and redis.pcall('RPUSH', history, adding, step) or redis.pcall('RPUSH', history, step)
  if type(begun) == 'table' then  -- nothing was written: of another type, or Redis refuses to write at all
    if begun.err:find('WRONGTYPE') then return false end
    return begun
  end
  left[machine], written[op_key] = true, true
  local entry = rec .. ':' .. arming
  put('HDEL', active, field)
  -- As it was added a lone one is not registered, see `registers` in arming.py; one that was kept or armed anew is.
  local as_added = guard == arming and adding:find('"commit":"' .. arming .. '"', 1, true)
  if twice or not (alone and as_added) then
    local waiting = prefix .. 'waiting:' .. op_key .. ':' .. module .. ':'
    for i = 13, scheduled - 1, 2 do put('ZREM', waiting .. ARGV[i], entry .. ':' .. ARGV[i + 1]) end
  end
  over[#over + 1] = entry
  for i = scheduled, after - 1 do over[#over + 1] = entry .. ':' .. ARGV[i] end
  gone[#gone + 1], gone[#gone + 2] = machine, prefix .. 'race:' .. rec
  given_up[#given_up + 1] = rec
  if ends then
    put('HSET', inactive, field, kept, to_field, there)
    if not alone then
      put('SET', prefix .. 'machine:' .. to_rec, id)
      put('DEL', prefix .. 'machine:' .. to_rec)
    end
    if alone or redis.call('EXISTS', active) == 0 then
      ended[#ended + 1] = op
      if forget_at then forgotten[#forgotten + 1], forgotten[#forgotten + 2] = forget_at, op end
    end
  else
    put('HSET', inactive, field, kept)
    gone[#gone + 1] = prefix .. 'race:' .. to_rec
    given_up[#given_up + 1] = to_rec
    for i = 1, #signals do
      local waiting = prefix .. 'waiting:' .. op_key .. ':' .. module .. ':' .. signals[i][1]
      local since = string.format('%.0f', now_us + signals[i][3])
      put('ZADD', waiting, since, to_rec .. ':' .. id .. ':' .. signals[i][2])
    end
    armed_keys[#armed_keys + 1] = prefix .. 'machine:' .. to_rec
    armed_keys[#armed_keys + 1] = ARGV[first + 13] .. armed .. ARGV[first + 14]
    due_at[#due_at + 1], due_at[#due_at + 2] = due, to_rec .. ':' .. id
    if not soonest or due_ms < soonest then soonest = due_ms end
    put('HSET', active, to_field, there)
    since[#since + 1], since[#since + 2] = now_text, op
  end
  put('XADD', prefix .. 'updates', 'MAXLEN', '~', ARGV[3], '*', 'op', op, 'entry', step)
  put('SPUBLISH', prefix .. 'bell:' .. op_key, '')
  i = writes
  while i <= last do
    local reply = put(unpack(ARGV, i + 1, i + ARGV[i]))
    counters[ARGV[i + 2]] = ARGV[i + 1] == 'INCRBY' and reply or nil
    i = i + 1 + ARGV[i]
  end
  local failed = torn
  torn, moved = '', moved + 1
  return at .. ' ' .. failed
end

-- settle: what is written once for all who have moved. What fails of it has failed for each, who is told of one failure.
local function settle()
  many('ZREM', KEYS[1], over, put)
  many('DEL', '', gone, put)
  many('HDEL', prefix .. 'quarantine', given_up, put)
  many('ZREM', prefix .. 'operations', ended, put)
  if #forgotten > 0 then
    many('ZADD', prefix .. 'finished', forgotten, put)
    put('ZADD', KEYS[1], 'LT', forgotten[1], '~retention')
  end
  if soonest then
    many('MSET', '', armed_keys, put)
    many('ZADD', KEYS[1], due_at, put)
    rouse(prefix .. 'roused', prefix .. 'wake', soonest - now, ARGV[2], put)
    put('ZADD', prefix .. 'operations', 'NX', unpack(since))
  end
  put('HINCRBY', prefix .. 'moves', ARGV[8], moved)
  put('SPUBLISH', prefix .. 'bells', '')
end

-- permitted: whether this user may write all of it, which EXEC sees to before it applies any.
local function permitted()
  for _, command in ipairs({{'RPUSH', 'history:', ''}, {'HDEL', 'active:', ''}, {'ZREM', 'waiting:', ''}, {'DEL', 'race:'},
    {'HSET', 'inactive:', '', ''}, {'SET', 'machine:', ''}, {'MSET', 'machine:', ''}, {'ZADD', 'operations', 0, ''}, {'HINCRBY', 'moves', '', 1},
    {'XADD', 'updates', '*', '', ''}, {'SPUBLISH', 'bells', ''}, {'PUBLISH', 'wake', ''}}) do
    command[2] = prefix .. command[2]
    if not redis.acl_check_cmd(unpack(command)) then return false end
  end
  return true
end

if not permitted() then return each(from, to, function() return false end) end
local replies = each(from, to, move)
if moved > 0 then
  settle()
  for i = 1, torn ~= '' and #replies or 0 do
    if replies[i] == at .. ' ' then replies[i] = at .. ' ' .. torn end
  end
end
return replies
