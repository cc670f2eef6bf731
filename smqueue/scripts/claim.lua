-- claim: lease due entries, and read what they need. Claiming re-scores an entry; only a commit removes it.
-- KEYS  schedule (or hosted), quarantine, watched[, hint: cleared when nothing is due, for then its drain is over]
-- ARGV  machine prefix, race prefix, active prefix, count, lease ms, park ms, resend ms, token of the host or ''
-- Returns {now µs, how many were due, 1 when watched, {row, ..}}; a row is {entry, machine, race, active} for a race that
-- is decided or for a trigger's code that is to run, or {entry} for other work. A cell that is unreadable is nil. The race
-- has what is not stored: of a trigger 'leased', the score that it has now. A row may also come as one string, see `joined`.
local machine_prefix, race_prefix, active_prefix = ARGV[1], ARGV[2], ARGV[3]
local lease, park, resend, token = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]

local function cell(reply)
  if type(reply) == 'table' and reply.err then return false end
  return reply
end

local any_quarantined = redis.call('EXISTS', KEYS[2]) == 1

local function active_of(m)
  local op = m.op
  if op:find('[^%w_.~-]') then op = op:gsub('[^%w_.~-]', function(c) return string.format('%%%02X', c:byte()) end) end
  return cell(redis.pcall('HGET', active_prefix .. op, m.field))
end

local due = redis.call('ZRANGE', KEYS[1], '-inf', now_text, 'BYSCORE', 'LIMIT', 0, ARGV[4])
local machines, recs, armings, triggers = {}, {}, {}, {}
for i = 1, #due do
  if due[i]:sub(1, 1) ~= '~' then recs[i], armings[i], triggers[i] = parts(due[i]) end
  machines[i] = recs[i] and machine_prefix .. recs[i] or KEYS[1]  -- that is none, and keeps the place
end
local seen = texts(machines)

-- Returns when to look at the entry again, in ms from now (nil: it is stale), and the row for the caller, if any.
local function take(entry, i)
  local rec, trigger = recs[i], triggers[i]
  if not rec then
    if entry:sub(1, 1) == '~' then return lease, {entry} end
    return nil
  end
  local m, raw = machine_at(machines[i], seen[i])
  if m == nil or (m and m.arming ~= armings[i]) then return nil end
  if any_quarantined and redis.call('HEXISTS', KEYS[2], rec) == 1 then return park + i * 97 end
  if m == false then return lease, {entry, false, false, false} end
  local race_key = race_prefix .. rec
  local race = cell(redis.pcall('HGETALL', race_key))
  if not race then return lease, {entry, raw, false, active_of(m)} end
  local deadline = deadline_of(m)
  local decided = deadline and deadline <= now
  for i = 1, #race, 2 do decided = decided or race[i] == 'won' end
  if trigger then
    if not m.armed[trigger] then return nil end
    if decided then  -- usually for a moment; for long when it is paused or keeps failing
      local since = tonumber(redis.call('HGET', race_key, 'at') or deadline or now)
      return math.max(1000, math.min(now - since, 60000))
    end
    local wait = lease
    if token ~= '' then
      redis.call('HSET', race_key, 'task:' .. trigger, token)
    else
      local sent = redis.call('HINCRBY', race_key, 'sent:' .. trigger, 1)
      wait = math.min(resend * 2 ^ (sent - 1), 300000)
    end
    race[#race + 1], race[#race + 2] = 'leased', string.format('%.0f', now + wait)
    return wait, {entry, raw, race, active_of(m)}
  end
  if not decided then return math.min(park + i * 97, deadline and deadline - now or park + i * 97) end
  local claims = redis.call('HINCRBY', race_key, 'claims', 1)
  race[#race + 1], race[#race + 2] = 'claims', claims == 1 and '1' or tostring(claims)
  return lease, {entry, raw, race, active_of(m)}
end

-- joined: a row as one string, its cells with a NUL between: entry, machine, active, and all of the race. To reply with one
-- string takes a fourth of the time for a dozen. As it was when a cell is missing, or has a NUL itself.
local function joined(row)
  local raw, race, active = row[2], row[3], row[4]
  if not (raw and race and active) then return row end
  if (row[1] .. raw .. active .. table.concat(race)):find('\0', 1, true) then return row end
  return row[1] .. '\0' .. raw .. '\0' .. active .. '\0' .. table.concat(race, '\0')
end

local rows, stale, leased, times = {}, {}, {}, {}
for i = 1, #due do
  local ok, wait, row = pcall(take, due[i], i)
  if not ok then wait, row = lease, {due[i], false, false, false} end  -- garbage, which keeps no other waiting
  if wait then
    times[wait] = times[wait] or string.format('%.0f', now + wait)
    leased[#leased + 1], leased[#leased + 2] = times[wait], due[i]
  else
    stale[#stale + 1] = due[i]
  end
  rows[#rows + 1] = row and joined(row)
end
many('ZADD', KEYS[1], leased)
many('ZREM', KEYS[1], stale)
if #due == 0 and KEYS[4] then redis.call('DEL', KEYS[4]) end
return {now_us_text, #due, redis.call('EXISTS', KEYS[3]), rows}
