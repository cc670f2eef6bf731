-- Shared by all scripts: Redis's clock, how a record is read, and how one run serves several callers.
-- What a call of a command costs is the call, not the command: where one run serves many, they share calls.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)
local now_text = string.format('%.0f', now)  -- a number that is handed to Redis is made text anew each time

-- machine: what a record is armed with, decoded; nil when there is none, false when it is garbage.
-- A machine is [guard, arming or 0 when it is the guard, op, field, {trigger: signal name | deadline ms | [kind, ..]}].
-- seen: its text, when the caller has read it.
local function machine_at(key, seen)
  local raw = seen or redis.pcall('GET', key)
  if type(raw) == 'table' then return false, 'the key holds another type' end
  if not raw then return nil, nil end
  local ok, m = pcall(cjson.decode, raw)
  if not ok or type(m) ~= 'table' then return false, raw end
  local guard, arming, op, field, armed = m[1], m[2], m[3], m[4], m[5]
  if type(guard) ~= 'string' or type(op) ~= 'string' or type(field) ~= 'string' or type(armed) ~= 'table' then
    return false, raw
  end
  return {guard = guard, arming = type(arming) == 'string' and arming or guard, op = op, field = field, armed = armed}, raw
end

local function deadline_of(m)
  local first
  for _, wait in pairs(m.armed) do
    if type(wait) == 'number' and (not first or wait < first) then first = wait end
  end
  return first
end

local function parts(entry)
  local first = entry:find(':', 1, true)
  local second = first and entry:find(':', first + 1, true)
  if not first then return nil end
  if not second then return entry:sub(1, first - 1), entry:sub(first + 1), nil end
  return entry:sub(1, first - 1), entry:sub(first + 1, second - 1), entry:sub(second + 1)
end

-- record_id: of a record, as keys.py makes it: 120 bits of SHA-1 in 20 characters of base64.
local letters
local function four(hex, from)  -- letters, of six hexadecimal digits: more are more than 32 bits, and so than some servers take
  local n = tonumber(hex:sub(from, from + 5), 16)
  local d = n % 64; n = (n - d) / 64
  local c = n % 64; n = (n - c) / 64
  local b = n % 64; n = (n - b) / 64
  return string.char(letters[n + 1], letters[b + 1], letters[c + 1], letters[d + 1])
end

local function record_id(op, field)
  letters = letters or {('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'):byte(1, 64)}
  local hex = redis.sha1hex(op .. '\n' .. field)
  return four(hex, 1) .. four(hex, 7) .. four(hex, 13) .. four(hex, 19) .. four(hex, 25)
end

-- record: the first outcome of a race stands; none is recorded once a deadline of that record has passed.
-- known: the machine, when the caller has looked at it. trace: the header of the span that brings it, if there is one.
-- due: where the entry is put, when the caller makes several due at once. none: the caller knows that there is no race.
-- Returns RECORDED, STALE (another arming), LOST (one is recorded already), LATE.
local function record(machine_prefix, race_prefix, schedule, entry, value, known, trace, due, none)
  local rec, arming, trigger = parts(entry)
  local m = known or machine_at(machine_prefix .. rec)
  if not m or m.arming ~= arming or not m.armed[trigger] then return 'STALE' end
  local race = race_prefix .. rec
  if not none and redis.call('HEXISTS', race, 'won') == 1 then return 'LOST' end
  local deadline = deadline_of(m)
  if deadline and deadline <= now then return 'LATE' end
  redis.call('HSET', race, 'won', trigger, 'value', value, 'at', now_text)
  if trace then redis.call('HSET', race, 'trace', trace) end
  if due then
    due[#due + 1], due[#due + 2] = now_text, rec .. ':' .. arming
  else
    redis.call('ZADD', schedule, now_text, rec .. ':' .. arming)
  end
  return 'RECORDED'
end

-- rouse: ring for the pump on watch, once until it looks, if something falls due before it would. As rouse in arming.py.
-- put: what writes, unless redis.call.
local function rouse(flag, wake, delay, watch, put)
  put = put or redis.call
  if tonumber(delay) < tonumber(watch) and put('SET', flag, '1', 'NX', 'PX', watch) then put('PUBLISH', wake, '') end
end

-- template: what is the same for all who come to wait in one state. In ARGV from first to last, four for each trigger: its
-- name in JSON; the signal that it waits for, in JSON and as part of a key, or both '' for a deadline; its name.
-- Returns what stands before each deadline in the JSON of what a machine is armed with, without braces; what stands at its
-- end; and of each signal {part of a key, trigger, which of all triggers}.
local function template(first, last)
  local before, text, signals = {}, '', {}
  for i = first, last, 4 do
    text = text .. (i == first and '' or ',') .. ARGV[i] .. ':' .. ARGV[i + 1]
    if ARGV[i + 2] == '' then
      before[#before + 1], text = text, ''
    else
      signals[#signals + 1] = {ARGV[i + 2], ARGV[i + 3], (i - first) / 4}
    end
  end
  return before, text, signals
end

-- waits_from: what a machine is armed with, its JSON without braces, and when it is due, as text and as a number; nil when
-- a deadline has passed. Those are in ARGV from own on: '+' and so many µs from now, or ms. park: ms.
local function waits_from(before, ending, own, park)
  local armed, due, due_text = '', now + park, nil
  for i = 1, #before do
    local wait = ARGV[own + i - 1]
    if wait:sub(1, 1) == '+' then wait = string.format('%.0f', math.ceil((now_us + wait:sub(2)) / 1000)) end
    local deadline = tonumber(wait)
    if deadline <= now then return nil end
    if deadline < due then due, due_text = deadline, wait end
    armed = armed .. before[i] .. wait
  end
  return armed .. ending, due_text or string.format('%.0f', due), due
end

-- callers: where the arguments of each caller of a script begin and end; each has in front how many they are.
local function callers(first)
  local from, to, last = {}, {}, #ARGV
  while first <= last do
    local at = #from + 1
    from[at], to[at] = first + 1, first + ARGV[first]
    first = to[at] + 1
  end
  return from, to
end

-- each: what the script does for each of its callers. An error in that is the reply of that caller alone.
local function each(from, to, act)
  local replies = {}
  for i = 1, #from do
    local ok, reply = pcall(act, from[i], to[i])
    replies[i] = ok and reply or not ok and {err = type(reply) == 'table' and reply.err or tostring(reply)}
  end
  return replies
end

-- many: one command with the arguments of all callers; in several parts when they are more than Lua can take, none of which
-- parts a pair. Returns the sum of its replies, where those are numbers. key: '' for none. call: what calls.
local PART = 1000
local function many(command, key, args, call)
  local sum, count = 0, #args
  for from = 1, count, PART do
    local to, reply = math.min(from + PART - 1, count), nil
    if key == '' then
      reply = (call or redis.call)(command, unpack(args, from, to))
    else
      reply = (call or redis.call)(command, key, unpack(args, from, to))
    end
    if type(reply) == 'number' then sum = sum + reply end
  end
  return sum
end

-- texts: what string keys hold, by key. Of one that is of another type, or not there, false or nil.
local function texts(keys)
  local found = {}
  for from = 1, #keys, PART do
    local some = redis.call('MGET', unpack(keys, from, math.min(from + PART - 1, #keys)))
    for i = 1, #some do found[keys[from + i - 1]] = some[i] end
  end
  return found
end
