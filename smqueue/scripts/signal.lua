-- signal: give a signal to the machine that has waited longest, or keep it. Repeating an attempt answers as before.
-- KEYS  schedule[, the broker's list]
-- ARGV  prefix of all keys; module and signal as parts of a key; the signal's name; inbox limit, kept ms, marker s, hint ms,
--         ids kept; the broker's database, the hint to push there, what in it stands for its id, or each ''
--       then of each: how many follow; operation, and as part of a key; payload (JSON), user's id or '', machine wanted or '',
--         item (JSON up to its time, its span's header first), request or '' (removed; only looked for when marker s is not
--         0), its attempt
-- Returns of each {DELIVERED | BUFFERED | DUPLICATE | FINISHED | FULL | GONE (the request was done already), 1 to send a hint}
local prefix, module, signal, name, marker_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[7]
local machine_prefix, race_prefix = prefix .. 'machine:', prefix .. 'race:'
local requests = prefix .. 'requests'
local delivered

local function one(first)
  local op, op_key, payload, id, wanted, item, request, attempt = unpack(ARGV, first, first + 7)
  local trace = item:match('^{"trace":"([^"]+)"')
  local about = op_key .. ':' .. module .. ':' .. signal
  local waiting, inbox, seen = prefix .. 'waiting:' .. about, prefix .. 'inbox:' .. about, prefix .. 'seen:' .. op_key
  local marker, active, inactive = prefix .. 'marker:' .. attempt, prefix .. 'active:' .. op_key, prefix .. 'inactive:' .. op_key
  if request ~= '' then
    if marker_s == '0' and redis.call('LREM', requests, 1, request) == 0 then return {'GONE', 0} end
    if marker_s ~= '0' and not redis.call('LPOS', requests, request) then return {'GONE', 0} end
  end
  local before = redis.call('GET', marker)
  if before then return {before, 0} end

  local function machine_of(entry)
    local m = machine_at(machine_prefix .. parts(entry))
    local raw = m and redis.pcall('HGET', active, m.field)
    local ok, found = pcall(cjson.decode, raw or '')
    return ok and type(found) == 'table' and found[1] or nil
  end

  local function deliver()
    for _, entry in ipairs(redis.call('ZRANGE', waiting, 0, wanted == '' and 0 or -1)) do
      if wanted == '' or machine_of(entry) == wanted then
        local said = record(machine_prefix, race_prefix, KEYS[1], entry, payload, nil, trace)  -- first: if it fails, nothing has been written
        redis.call('ZREM', waiting, entry)  -- one that is refused now registers again when it waits again
        return said == 'RECORDED' and 'DELIVERED' or deliver()
      end
    end
    return nil
  end

  -- The only machine of an operation whose history has not begun registers nowhere, unless two of its triggers wait for one
  -- signal: most of what waits is such a one.
  local function deliver_to_lone()
    local flat, own, entry = redis.pcall('HGETALL', active), module .. ' ', nil
    if #flat ~= 2 or flat[1]:sub(1, #own) ~= own then return nil end
    local rec = record_id(op_key, flat[1])
    local m = machine_at(machine_prefix .. rec)
    for trigger, wait in pairs(m and m.armed or {}) do
      if wait == name then
        if entry then return nil end
        entry = rec .. ':' .. m.arming .. ':' .. trigger
      end
    end
    if not entry or wanted ~= '' and machine_of(entry) ~= wanted then return nil end
    return record(machine_prefix, race_prefix, KEYS[1], entry, payload, m, trace) == 'RECORDED' and 'DELIVERED' or nil
  end

  local function accept()
    if id ~= '' and redis.call('ZSCORE', seen, id) then return 'DUPLICATE' end
    local begun = redis.call('EXISTS', inactive, prefix .. 'history:' .. op_key) > 0
    if begun and redis.call('EXISTS', active) == 0 and redis.call('EXISTS', inactive) == 1 then return 'FINISHED' end
    local said = not begun and deliver_to_lone() or deliver()
    if not said then
      if redis.call('LLEN', inbox) >= tonumber(ARGV[5]) then return 'FULL' end
      redis.call('RPUSH', inbox, item .. ',"at":' .. string.format('%.0f', now_us) .. '}')
      redis.call('PEXPIRE', inbox, ARGV[6])
      redis.call('ZADD', prefix .. 'early', now, op_key .. ' ' .. module .. ' ' .. signal)
      redis.call('ZREMRANGEBYRANK', prefix .. 'early', 0, -1001)
      said = 'BUFFERED'
    end
    if id ~= '' then
      redis.call('ZADD', seen, now, id)
      redis.call('ZREMRANGEBYRANK', seen, 0, -tonumber(ARGV[9]) - 1)
      redis.call('PEXPIRE', seen, ARGV[6])
    end
    return said
  end

  local said = accept()
  if marker_s ~= '0' then redis.call('SET', marker, said, 'EX', marker_s) end
  local answer = {said, 0}
  if said == 'DELIVERED' then delivered = {answer, attempt} end
  return answer
end

local answers = each(13, one)
if delivered and redis.call('SET', prefix .. 'hint', '1', 'NX', 'PX', ARGV[8]) then  -- one hint is enough for all of them
  delivered[1][2] = 1
  if ARGV[11] ~= '' then  -- last, for it may be another database
    redis.call('SELECT', ARGV[10])
    local message = ARGV[11]:gsub(ARGV[12], (delivered[2]:gsub('%%', '%%%%')))
    if type(redis.pcall('LPUSH', KEYS[2], message)) == 'number' then delivered[1][2] = 0 end
  end
end
return answers
