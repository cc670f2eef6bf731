-- Shared by all scripts: Redis's clock, how a record is read, and how one run serves several callers.
-- What a call of a command costs is the call, not the command: where one run serves many, they share calls.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)
local now_us_text = clock[1] .. ('00000' .. clock[2]):sub(-6)  -- a number that is handed to Redis is made text anew each time
local now_text = now_us_text:sub(1, -4)

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

-- record_id: of a record, as keys.py makes it: 120 bits of SHA-1 in 20 characters of base64. Of each three hexadecimal digits
-- two letters are looked up: their places are sums. The code of a digit modulo 39 is its value and 9, for which the letters
-- begin at 9; what the middle one adds to either place is in a table.
local letters, upper, lower
local function ten(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  local all, up, low = letters, upper, lower
  return all[a % 39 * 4 + up[b]], all[low[b] + c % 39], all[d % 39 * 4 + up[e]], all[low[e] + f % 39],
    all[g % 39 * 4 + up[h]], all[low[h] + i % 39], all[j % 39 * 4 + up[k]], all[low[k] + l % 39],
    all[m % 39 * 4 + up[n]], all[low[n] + o % 39]
end

local function record_id(op, field)
  if not letters then
    letters = {('        ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'):byte(1, 72)}
    upper = {[48] = -27, [49] = -27, [50] = -27, [51] = -27, [52] = -26, [53] = -26, [54] = -26, [55] = -26,
      [56] = -25, [57] = -25, [97] = -25, [98] = -25, [99] = -24, [100] = -24, [101] = -24, [102] = -24}
    lower = {[48] = 0, [49] = 16, [50] = 32, [51] = 48, [52] = 0, [53] = 16, [54] = 32, [55] = 48,
      [56] = 0, [57] = 16, [97] = 32, [98] = 48, [99] = 0, [100] = 16, [101] = 32, [102] = 48}
  end
  local hex = redis.sha1hex(op .. '\n' .. field)
  return string.char(ten(hex:byte(1, 15))) .. string.char(ten(hex:byte(16, 30)))
end

-- record: the first outcome of a race stands; none is recorded once a deadline of that record has passed.
-- race: its key. entry: its own. trace: the header of the span that brings it, if there is one. due: where the entry is
-- put, when the caller makes several due at once. none: the caller knows that there is no race.
-- Returns RECORDED, LOST (one is recorded already), LATE.
local function record(schedule, race, entry, m, trigger, value, trace, due, none)
  if not none and redis.call('HEXISTS', race, 'won') == 1 then return 'LOST' end
  local deadline = deadline_of(m)
  if deadline and deadline <= now then return 'LATE' end
  redis.call('HSET', race, 'won', trigger, 'value', value, 'at', now_text)
  if trace then redis.call('HSET', race, 'trace', trace) end
  if due then
    due[#due + 1], due[#due + 2] = now_text, entry
  else
    redis.call('ZADD', schedule, now_text, entry)
  end
  return 'RECORDED'
end

-- record_of: the same, for what waits under the entry of a trigger. Returns STALE, too: another arming.
local function record_of(machine_prefix, race_prefix, schedule, entry, value, trace, due)
  local rec, arming, trigger = parts(entry)
  local m = machine_at(machine_prefix .. rec)
  if not m or m.arming ~= arming or not m.armed[trigger] then return 'STALE' end
  return record(schedule, race_prefix .. rec, rec .. ':' .. arming, m, trigger, value, trace, due)
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
local given = {}  -- those deadlines as text, ms: callers mostly have the same
local function waits_from(before, ending, own, park)
  local armed, due, due_text = '', now + park, nil
  for i = 1, #before do
    local text = ARGV[own + i - 1]
    local wait = given[text]
    if not wait then
      wait = text:sub(1, 1) == '+' and string.format('%.0f', math.ceil((now_us + text:sub(2)) / 1000)) or text
      given[text] = wait
    end
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

-- each: what the script does for each of its callers, told where its arguments begin and end, and which it is. An error in
-- that is the reply of that caller alone.
local function each(from, to, act)
  local replies = {}
  for i = 1, #from do
    local ok, reply = pcall(act, from[i], to[i], i)
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

-- texts: what string keys hold, in their order. Of one that is of another type, or not there, false.
local function texts(keys)
  local found = #keys > 0 and redis.call('MGET', unpack(keys, 1, math.min(PART, #keys))) or {}
  for from = PART + 1, #keys, PART do
    local some = redis.call('MGET', unpack(keys, from, math.min(from + PART - 1, #keys)))
    for i = 1, #some do found[from + i - 1] = some[i] end
  end
  return found
end
