-- signal: give a signal to the machine that has waited longest, or keep it. Repeating an attempt answers as before.
-- KEYS  schedule[, the broker's list]
-- ARGV  prefix of all keys; module and signal as parts of a key; the signal's name; inbox limit, kept ms, marker s, hint ms,
--         ids kept; the broker's database, the hint to push there, what in it stands for its id, or each ''
--       then of each: how many follow; operation as part of a key; payload (JSON), user's id or '', machine wanted or '', item
--         (JSON up to its time, its span's header first), request or '' (removed; only looked for when marker s is not 0),
--         its attempt
-- Returns of each DELIVERED | BUFFERED | DUPLICATE | FINISHED | FULL | GONE (the request was done already); of one that was
-- delivered HINT instead, to send one
local prefix, module, signal, name, marker_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[7]
local machine_prefix, race_prefix = prefix .. 'machine:', prefix .. 'race:'
local requests = prefix .. 'requests'

local from, to = callers(13)

-- What one look for all callers shows: which attempts were answered before, whether any operation has a history, and of each
-- that has none its only machine, which registers nowhere; what most signals are for.
local markers, pasts = {}, {}
for i = 1, #from do
  local op_key = ARGV[from[i]]
  markers[i] = prefix .. 'marker:' .. ARGV[from[i] + 6]
  pasts[2 * i - 1], pasts[2 * i] = prefix .. 'inactive:' .. op_key, prefix .. 'history:' .. op_key
end
local before, answered, none_begun = texts(markers), {}, many('EXISTS', '', pasts) == 0

local own = module .. ' '
local function lone_of(op_key)
  local flat = redis.pcall('HGETALL', prefix .. 'active:' .. op_key)
  return #flat == 2 and flat[1]:sub(1, #own) == own and record_id(op_key, flat[1])
end

local begun, lone, records, machines, races = {}, {}, {}, {}, {}  -- lone: the place of an operation's in the last three
for i = 1, #from do
  local op_key = ARGV[from[i]]
  if lone[op_key] == nil then
    local past = not none_begun and redis.call('EXISTS', pasts[2 * i - 1], pasts[2 * i]) > 0
    if past then begun[op_key] = true end
    local rec, n = not past and lone_of(op_key), #records + 1
    lone[op_key] = rec and n
    if rec then records[n], machines[n], races[n] = rec, machine_prefix .. rec, race_prefix .. rec end
  end
end
local seen_machines, none_raced, raced = texts(machines), many('EXISTS', '', races) == 0, {}

local due, marks, delivered = {}, {}, nil

local function machine_of(entry, active)
  local m = machine_at(machine_prefix .. parts(entry))
  local raw = m and redis.pcall('HGET', active, m.field)
  local ok, found = pcall(cjson.decode, raw or '')
  return ok and type(found) == 'table' and found[1] or nil
end

local function deliver(op_key, payload, wanted, trace)
  local waiting, active = prefix .. 'waiting:' .. op_key .. ':' .. module .. ':' .. signal, prefix .. 'active:' .. op_key
  for _, entry in ipairs(redis.call('ZRANGE', waiting, 0, wanted == '' and 0 or -1)) do
    if wanted == '' or machine_of(entry, active) == wanted then
      local said = record_of(machine_prefix, race_prefix, KEYS[1], entry, payload, trace, due)  -- first: if it fails, nothing has been written
      redis.call('ZREM', waiting, entry)  -- one that is refused now registers again when it waits again
      return said == 'RECORDED' or deliver(op_key, payload, wanted, trace)
    end
  end
  return false
end

-- The only machine of an operation whose history has not begun registers nowhere, unless two of its triggers wait for one
-- signal.
local function deliver_to_lone(op_key, payload, wanted, trace)
  local n, trigger = lone[op_key], nil
  local m = machine_at(machines[n], seen_machines[n])
  for other, wait in pairs(m and m.armed or {}) do
    if wait == name then
      if trigger then return false end
      trigger = other
    end
  end
  if type(trigger) ~= 'string' or m.arming:find(':', 1, true) then return false end  -- none, or one that no entry can name
  local entry = records[n] .. ':' .. m.arming
  if wanted ~= '' and machine_of(entry, prefix .. 'active:' .. op_key) ~= wanted then return false end
  local none = none_raced and not raced[n]
  raced[n] = true
  return record(KEYS[1], races[n], entry, m, trigger, payload, trace, due, none) == 'RECORDED'
end

local function keep(op_key, item)
  local inbox = prefix .. 'inbox:' .. op_key .. ':' .. module .. ':' .. signal
  if redis.call('LLEN', inbox) >= tonumber(ARGV[5]) then return 'FULL' end
  redis.call('RPUSH', inbox, item .. ',"at":' .. now_us_text .. '}')
  redis.call('PEXPIRE', inbox, ARGV[6])
  redis.call('ZADD', prefix .. 'early', now_text, op_key .. ' ' .. module .. ' ' .. signal)
  redis.call('ZREMRANGEBYRANK', prefix .. 'early', 0, -1001)
  return 'BUFFERED'
end

local function accept(op_key, payload, id, wanted, item)
  local seen = id ~= '' and prefix .. 'seen:' .. op_key
  if seen and redis.call('ZSCORE', seen, id) then return 'DUPLICATE' end
  if begun[op_key] and redis.call('EXISTS', prefix .. 'active:' .. op_key) == 0
    and redis.call('EXISTS', prefix .. 'inactive:' .. op_key) == 1 then return 'FINISHED' end
  local trace, said = item:match('^{"trace":"([^"]+)"'), 'DELIVERED'
  if not (lone[op_key] and deliver_to_lone(op_key, payload, wanted, trace)) and not deliver(op_key, payload, wanted, trace) then
    said = keep(op_key, item)
  end
  if seen and said ~= 'FULL' then
    redis.call('ZADD', seen, now_text, id)
    redis.call('ZREMRANGEBYRANK', seen, 0, -tonumber(ARGV[9]) - 1)
    redis.call('PEXPIRE', seen, ARGV[6])
  end
  return said
end

local function one(first, _, i)
  local op_key, payload, id, wanted, item, request = unpack(ARGV, first, first + 5)
  if request ~= '' then
    if marker_s == '0' and redis.call('LREM', requests, 1, request) == 0 then return 'GONE' end
    if marker_s ~= '0' and not redis.call('LPOS', requests, request) then return 'GONE' end
  end
  local marker = markers[i]
  local said = before[i] or answered[marker]
  if said then return said end
  said = accept(op_key, payload, id, wanted, item)
  if marker_s ~= '0' then marks[#marks + 1], answered[marker] = marker, said end
  if said == 'DELIVERED' then delivered = first end
  return said
end

local answers = each(from, to, one)
many('ZADD', KEYS[1], due)
for i = 1, #marks do redis.call('SET', marks[i], answered[marks[i]], 'EX', marker_s) end
if delivered and redis.call('SET', prefix .. 'hint', '1', 'NX', 'PX', ARGV[8]) then  -- one hint is enough for all of them
  local hint, attempt = true, ARGV[delivered + 6]
  if ARGV[11] ~= '' then  -- last, for it may be another database
    redis.call('SELECT', ARGV[10])
    local message = ARGV[11]:gsub(ARGV[12], (attempt:gsub('%%', '%%%%')))
    hint = type(redis.pcall('LPUSH', KEYS[2], message)) ~= 'number'
  end
  for i = 1, hint and #from or 0 do
    if from[i] == delivered then answers[i] = 'HINT' end
  end
end
return answers
