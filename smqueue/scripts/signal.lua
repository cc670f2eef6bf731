-- signal: give a signal to the machine that has waited longest, or keep it. Repeating an attempt answers as before.
-- KEYS  waiting, inbox, seen, marker, active, inactive, schedule, hint, requests, history, early[, the broker's list]
-- ARGV  machine prefix, race prefix, payload (JSON), user's id or '', machine wanted or '', item (JSON up to its time,
--       its span's header first),
--       inbox limit, kept ms, marker s, hint ms, ids kept, request or '' (removed; only looked for when marker s is not 0),
--       how fields of the module begin, name of the signal, what it is called in early[, the broker's database, the hint to
--       push there, what in it stands for its id, its id]
-- Returns {DELIVERED | BUFFERED | DUPLICATE | FINISHED | FULL | GONE (the request was done already), 1 to send a hint}
local id, wanted, trace = ARGV[4], ARGV[5], ARGV[6]:match('^{"trace":"([^"]+)"')
if ARGV[12] ~= '' then
  if ARGV[9] == '0' and redis.call('LREM', KEYS[9], 1, ARGV[12]) == 0 then return {'GONE', 0} end
  if ARGV[9] ~= '0' and not redis.call('LPOS', KEYS[9], ARGV[12]) then return {'GONE', 0} end
end
local before = redis.call('GET', KEYS[4])
if before then return {before, 0} end

local function machine_of(entry)
  local m = machine_at(ARGV[1] .. parts(entry))
  local raw = m and redis.pcall('HGET', KEYS[5], m.field)
  local ok, active = pcall(cjson.decode, raw or '')
  return ok and type(active) == 'table' and active[1] or nil
end

local function deliver()
  for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, wanted == '' and 0 or -1)) do
    if wanted == '' or machine_of(entry) == wanted then
      local said = record(ARGV[1], ARGV[2], KEYS[7], entry, ARGV[3], nil, trace)  -- first: if it fails, nothing has been written
      redis.call('ZREM', KEYS[1], entry)  -- one that is refused now registers again when it waits again
      if said == 'RECORDED' then return 'DELIVERED' end
      return wanted == '' and deliver() or nil
    end
  end
  return nil
end

-- The only machine of an operation whose history has not begun registers nowhere: most of what waits is such a one.
local function deliver_to_lone()
  local flat = redis.pcall('HGETALL', KEYS[5])
  if #flat ~= 2 or flat[1]:sub(1, #ARGV[13]) ~= ARGV[13] then return nil end
  local rec = record_id(KEYS[5]:match('}:active:(.*)$'), flat[1])
  local m = machine_at(ARGV[1] .. rec)
  for trigger, wait in pairs(m and m.armed or {}) do
    local entry = rec .. ':' .. m.arming .. ':' .. trigger
    if wait == ARGV[14] and (wanted == '' or machine_of(entry) == wanted) then
      return record(ARGV[1], ARGV[2], KEYS[7], entry, ARGV[3], m, trace) == 'RECORDED' and 'DELIVERED' or nil
    end
  end
  return nil
end

local function accept()
  if id ~= '' and redis.call('ZSCORE', KEYS[3], id) then return 'DUPLICATE' end
  local begun = redis.call('EXISTS', KEYS[6], KEYS[10]) > 0
  if begun and redis.call('EXISTS', KEYS[5]) == 0 and redis.call('EXISTS', KEYS[6]) == 1 then return 'FINISHED' end
  local said = deliver() or not begun and deliver_to_lone()
  if not said then
    if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[7]) then return 'FULL' end
    redis.call('RPUSH', KEYS[2], ARGV[6] .. ',"at":' .. string.format('%.0f', now_us) .. '}')
    redis.call('PEXPIRE', KEYS[2], ARGV[8])
    redis.call('ZADD', KEYS[11], now, ARGV[15])
    redis.call('ZREMRANGEBYRANK', KEYS[11], 0, -1001)
    said = 'BUFFERED'
  end
  if id ~= '' then
    redis.call('ZADD', KEYS[3], now, id)
    redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -tonumber(ARGV[11]) - 1)
    redis.call('PEXPIRE', KEYS[3], ARGV[8])
  end
  return said
end

local said = accept()
if ARGV[9] ~= '0' then redis.call('SET', KEYS[4], said, 'EX', ARGV[9]) end
local due = said == 'DELIVERED' and redis.call('SET', KEYS[8], '1', 'NX', 'PX', ARGV[10])
if due and ARGV[17] then  -- last, for it may be another database
  redis.call('SELECT', ARGV[16])
  local message = ARGV[17]:gsub(ARGV[18], ARGV[19])
  due = type(redis.pcall('LPUSH', KEYS[12], message)) ~= 'number'
end
return {said, due and 1 or 0}
