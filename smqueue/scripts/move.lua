-- move: a machine leaves its state for another one, which is terminal or waits for signals and deadlines and nothing else.
-- KEYS  schedule, and what handlers write
-- ARGV  prefix of all keys; watch ms, updates kept; of the state left: its module and its type as parts of a key, how many of
--         its signals it may be registered for, how many of its other triggers are in the schedule; how it moves; 'end' when
--         the state entered is terminal, ms after which its operation may be forgotten then or ''; '1' when either state may be
--         there under another field; those signals as parts of a key, each with the name of its trigger; those other triggers
--       then of each: how many follow; operation, and as part of a key; id of the commit; of the state left: field, record,
--         guard, arming, the entry of its adding if that is not in the history yet or '', the record that stays of it; of
--         the state entered: field, record, its step, what is stored of it, active or (terminal) inactive; unless that is
--         terminal how its machine key begins and ends, park ms, how many arguments its triggers take, its triggers, see
--         `waits_from`; the handler's commands, each with its length in front. A NUL stands for now, in µs.
-- Returns of each {now µs, what failed while the rest was applied or ''}; nil when it takes a look to say what is to be done:
-- then nothing was written. What it writes is what `_plan` in transition.py has EXEC write, byte for byte.
local prefix, module, ends = ARGV[1], ARGV[4], ARGV[9] == 'end'
local signals = 12 + 2 * ARGV[6]
local others = signals + ARGV[7]
local at = string.format('%.0f', now_us)
local of_module = prefix .. 'control:module:' .. module
local of_type = of_module .. ':' .. ARGV[5]

local KINDS = {HSET = 'hash', HDEL = 'hash', HINCRBY = 'hash', SADD = 'set', SREM = 'set', ZADD = 'zset', ZREM = 'zset',
  RPUSH = 'list', INCRBY = 'string'}

-- fits: whether a command of the handler cannot fail where its neighbours are applied.
local function fits(first, last)
  local name, key = ARGV[first], ARGV[first + 1]
  if not redis.acl_check_cmd(unpack(ARGV, first, last)) then return false end
  local number
  if name == 'INCRBY' then
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

local function move(first, last)
  local op, op_key, id, field, rec, guard, arming, adding, kept, to_field, to_rec, step, there = unpack(ARGV, first, first + 12)
  local machine, active, inactive = prefix .. 'machine:' .. rec, prefix .. 'active:' .. op_key, prefix .. 'inactive:' .. op_key
  local history, about = prefix .. 'history:' .. op_key, op_key .. ':' .. module .. ':'
  local waits, writes = first + 17, first + 13
  if not ends then writes = waits + ARGV[first + 16] end

  local raw, expected = redis.pcall('GET', machine), '["' .. guard .. '",'
  if type(raw) ~= 'string' or raw:sub(1, #expected) ~= expected then return false end
  local unwanted = {prefix .. 'watchers:' .. op_key, prefix .. 'control:' .. op_key, of_module, of_type}
  if not ends then
    for i = waits, writes - 1, 5 do
      if ARGV[i + 3] ~= '' then unwanted[#unwanted + 1] = prefix .. 'inbox:' .. about .. ARGV[i + 3] end
    end
  end
  if redis.call('EXISTS', unpack(unwanted)) > 0 then return false end
  local alone = adding ~= '' and redis.call('EXISTS', history, inactive) == 0
  if not alone then
    if ARGV[11] ~= '' or redis.call('HEXISTS', active, to_field) == 1 then return false end
    local past = redis.call('HMGET', inactive, field, to_field)
    if past[1] or past[2] then return false end
  end
  local armed, due
  if not ends then
    armed, due = waits_from(waits, writes - 1, ARGV[first + 15])
    if not armed then return false end
  end
  local i = writes
  while i <= last do
    if not fits(i + 1, i + ARGV[i]) then return false end
    i = i + 1 + ARGV[i]
  end

  step, kept, there = step:gsub('%z', at), kept:gsub('%z', at), there:gsub('%z', at)
  local begun = alone and redis.pcall('RPUSH', history, adding, step) or redis.pcall('RPUSH', history, step)
  if type(begun) == 'table' then  -- nothing was written: of another type, or Redis refuses to write at all
    if begun.err:find('WRONGTYPE') then return false end
    return begun
  end
  -- From here on all is applied, whatever fails: as in EXEC.
  local torn = ''
  local function put(...)
    local reply = redis.pcall(...)
    if type(reply) ~= 'table' or not reply.err then return reply end
    if torn == '' then torn = (...) .. ' ' .. reply.err end
    return false
  end
  local entry = rec .. ':' .. arming
  put('HDEL', active, field)
  for at = 12, signals - 1, 2 do put('ZREM', prefix .. 'waiting:' .. about .. ARGV[at], entry .. ':' .. ARGV[at + 1]) end
  put('ZREM', KEYS[1], entry)
  for at = signals, others - 1 do put('ZREM', KEYS[1], entry .. ':' .. ARGV[at]) end
  put('DEL', machine, prefix .. 'race:' .. rec)
  put('HDEL', prefix .. 'quarantine', rec)
  if ends then
    put('HSET', inactive, field, kept, to_field, there)
    if not alone then
      put('SET', prefix .. 'machine:' .. to_rec, id)
      put('DEL', prefix .. 'machine:' .. to_rec)
    end
    if alone or redis.call('EXISTS', active) == 0 then
      put('ZREM', prefix .. 'operations', op)
      if ARGV[10] ~= '' then
        put('ZADD', prefix .. 'finished', now + ARGV[10], op)
        put('ZADD', KEYS[1], 'LT', now + ARGV[10], '~retention')
      end
    end
  else
    put('HSET', inactive, field, kept)
    put('DEL', prefix .. 'race:' .. to_rec)
    put('HDEL', prefix .. 'quarantine', to_rec)
    for i = waits, writes - 1, 5 do
      if ARGV[i + 3] ~= '' then
        local since = string.format('%.0f', now_us + (i - waits) / 5)
        put('ZADD', prefix .. 'waiting:' .. about .. ARGV[i + 3], since, to_rec .. ':' .. id .. ':' .. ARGV[i + 4])
      end
    end
    put('SET', prefix .. 'machine:' .. to_rec, ARGV[first + 13] .. armed .. ARGV[first + 14])
    put('ZADD', KEYS[1], due, to_rec .. ':' .. id)
    rouse(prefix .. 'roused', prefix .. 'wake', due - now, ARGV[2], put)
    put('HSET', active, to_field, there)
    put('ZADD', prefix .. 'operations', 'NX', now, op)
  end
  put('HINCRBY', prefix .. 'moves', ARGV[8], 1)
  put('XADD', prefix .. 'updates', 'MAXLEN', '~', ARGV[3], '*', 'op', op, 'entry', step)
  put('SPUBLISH', prefix .. 'bell:' .. op_key, '')
  put('SPUBLISH', prefix .. 'bells', '')
  i = writes
  while i <= last do
    put(unpack(ARGV, i + 1, i + ARGV[i]))
    i = i + 1 + ARGV[i]
  end
  return {at, torn}
end

-- permitted: whether this user may write all of it, which EXEC sees to before it applies any.
local function permitted()
  for _, command in ipairs({{'RPUSH', 'history:', ''}, {'HDEL', 'active:', ''}, {'ZREM', 'waiting:', ''}, {'DEL', 'race:'},
    {'HSET', 'inactive:', '', ''}, {'SET', 'machine:', ''}, {'ZADD', 'operations', 0, ''}, {'HINCRBY', 'moves', '', 1},
    {'XADD', 'updates', '*', '', ''}, {'SPUBLISH', 'bells', ''}, {'PUBLISH', 'wake', ''}}) do
    command[2] = prefix .. command[2]
    if not redis.acl_check_cmd(unpack(command)) then return false end
  end
  return true
end

local may = permitted()
return each(others, function(first, last) return may and move(first, last) end)
