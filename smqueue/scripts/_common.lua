-- Shared by all scripts: Redis's clock, and how a record is read.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- machine: what a record is armed with, decoded; nil when there is none, false when it is garbage.
-- A machine is [guard, arming or 0 when it is the guard, op, field, {trigger: signal name | deadline ms | [kind, ..]}].
local function machine_at(key)
  local raw = redis.pcall('GET', key)
  if type(raw) == 'table' then return false, 'the key holds another type' end
  if not raw then return nil, nil end
  local ok, m = pcall(cjson.decode, raw)
  if not ok or type(m) ~= 'table' or type(m[1]) ~= 'string' or type(m[3]) ~= 'string' or type(m[4]) ~= 'string'
    or type(m[5]) ~= 'table' then return false, raw end
  return {guard = m[1], arming = type(m[2]) == 'string' and m[2] or m[1], op = m[3], field = m[4], armed = m[5]}, raw
end

local function deadline_of(m)
  local first
  for _, wait in pairs(m.armed) do
    if type(wait) == 'number' and (not first or wait < first) then first = wait end
  end
  return first
end

local function parts(entry)
  local record, arming, trigger = entry:match('^([^:]+):([^:]+):(.+)$')
  if record then return record, arming, trigger end
  record, arming = entry:match('^([^:]+):([^:]+)$')
  return record, arming, nil
end

-- record_id: of a record, as keys.py makes it: 120 bits of SHA-1 in 20 characters of base64.
local LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
local function record_id(op, field)
  local hex, out = redis.sha1hex(op .. '\n' .. field), {}
  for i = 1, 30, 3 do  -- three hexadecimal digits are two letters
    local n = tonumber(hex:sub(i, i + 2), 16)
    local high, low = math.floor(n / 64) + 1, n % 64 + 1
    out[#out + 1] = LETTERS:sub(high, high) .. LETTERS:sub(low, low)
  end
  return table.concat(out)
end

-- record: the first outcome of a race stands; none is recorded once a deadline of that record has passed.
-- known: the machine, when the caller has looked at it. trace: the header of the span that brings it, if there is one.
-- Returns RECORDED, STALE (another arming), LOST (one is recorded already), LATE.
local function record(machine_prefix, race_prefix, schedule, entry, value, known, trace)
  local rec, arming, trigger = parts(entry)
  local m = known or machine_at(machine_prefix .. rec)
  if not m or m.arming ~= arming or not m.armed[trigger] then return 'STALE' end
  if redis.call('HEXISTS', race_prefix .. rec, 'won') == 1 then return 'LOST' end
  local deadline = deadline_of(m)
  if deadline and deadline <= now then return 'LATE' end
  redis.call('HSET', race_prefix .. rec, 'won', trigger, 'value', value, 'at', string.format('%.0f', now))
  if trace then redis.call('HSET', race_prefix .. rec, 'trace', trace) end
  redis.call('ZADD', schedule, now, rec .. ':' .. arming)
  return 'RECORDED'
end

-- rouse: ring for the pump on watch, once until it looks, if something falls due before it would. As rouse in arming.py.
-- put: what writes, unless redis.call.
local function rouse(flag, wake, delay, watch, put)
  put = put or redis.call
  if tonumber(delay) < tonumber(watch) and put('SET', flag, '1', 'NX', 'PX', watch) then put('PUBLISH', wake, '') end
end

-- waits_from: what a machine is armed with, its JSON without braces, and when it is due; nil when a deadline has passed.
-- In ARGV from first to last, five for each trigger: its name in JSON, '=' or '+' (add the clock), what it waits for in JSON
-- or after how many µs, and for a signal its name as part of a key and the trigger's name. park: ms.
local function waits_from(first, last, park)
  local armed, due = {}, now + park
  for i = first, last, 5 do
    local wait = ARGV[i + 2]
    if ARGV[i + 1] == '+' then wait = string.format('%.0f', math.ceil((now_us + wait) / 1000)) end
    local deadline = ARGV[i + 3] == '' and tonumber(wait)
    if deadline and deadline <= now then return nil end
    due = math.min(due, deadline or due)
    armed[#armed + 1] = ARGV[i] .. ':' .. wait
  end
  return table.concat(armed, ','), due
end

-- each: what the script does for each of several callers; its arguments, from first on, begin with how many they are.
-- An error is the reply of that caller alone.
local function each(first, act)
  local replies = {}
  while first <= #ARGV do
    local last = first + ARGV[first]
    local ok, reply = pcall(act, first + 1, last)
    replies[#replies + 1] = ok and reply or not ok and {err = type(reply) == 'table' and reply.err or tostring(reply)}
    first = last + 1
  end
  return replies
end
