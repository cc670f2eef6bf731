#!lua name=smqueue
-- Producing with one command and no library: FUNCTION LOAD once, and redis-cli or a gateway adds and signals.
--
--   FCALL smqueue_add 1 {namespace.0}:requests OP MODULE TYPE STATE [exist_ok 1]
--   FCALL smqueue_signal 1 {namespace.0}:requests OP NAME PAYLOAD [module ID] [machine ID] [id TEXT]
--   FCALL_RO smqueue_key 1 {namespace.0}:meta OP
--
-- STATE and PAYLOAD are JSON; an empty MODULE is the only one that has such a type. The first two do what Client does
-- (asking.py, requests.py): they leave a request in the list that is their key, for a worker to validate, commit and
-- answer. They return the key of the answer: `BLPOP <key> 30` brings {"value": ..}, or {"error": type, "args": [..],
-- "message": words}. What can be seen at once is an error of the command itself, which begins with the error's type, and
-- nothing is left then. The third returns the key for an operation where the namespace has several shards.
--
-- Whoever calls needs the rights of what is called here. The other keys have the tag of the one that is given.

local KEPT_S = 600        -- as ANSWER_S in requests.py
local WAITING = 10000     -- as REQUESTS_KEPT in bounds.py
local LONGEST = 1048576   -- bytes of JSON; they are looked through while the server waits
local LONGEST_NAME = 512  -- as check_operation_id

local function refuse(kind, text) error({err = kind .. ' ' .. text}) end

-- text: bytes that are UTF-8; a worker cannot even answer others.
local function text(what, value, longest)
  if value == nil then refuse('InvalidInput', what .. ': missing') end
  if #value > longest then
    refuse('TooLarge', string.format('The %s has %d bytes; the limit is %d.', what, #value, longest))
  end
  local rest = value:gsub('[\194-\223][\128-\191]', '.'):gsub('\224[\160-\191][\128-\191]', '.')
    :gsub('\237[\128-\159][\128-\191]', '.'):gsub('[\225-\236\238\239][\128-\191][\128-\191]', '.')
    :gsub('\240[\144-\191][\128-\191][\128-\191]', '.'):gsub('[\241-\243][\128-\191][\128-\191][\128-\191]', '.')
    :gsub('\244[\128-\143][\128-\191][\128-\191]', '.')
  if rest:find('[\128-\255]') then refuse('InvalidInput', what .. ': not UTF-8') end
  return value
end

local function name(what, value)
  if value == '' then refuse('InvalidInput', what .. ': expected text, got none') end
  return text(what, value, LONGEST_NAME)
end

-- json: text that is JSON; what it is to be, and what its numbers mean, is for a worker to say.
local function json(what, value)
  if not pcall(cjson.decode, text(what, value, LONGEST)) then
    refuse('InvalidInput', what .. ': not JSON (text needs quotes of its own, as in \'"text"\')')
  end
  return value
end

-- options: pairs behind the arguments that have a place.
local function options(args, first, known)
  local found = {}
  for at = first, #args, 2 do
    local given = args[at]
    if not known[given] then
      local names = {}
      for one in pairs(known) do names[#names + 1] = one end
      table.sort(names)
      refuse('InvalidInput', given .. ': no such option: ' .. table.concat(names, ', '))
    end
    found[given] = name(given, args[at + 1])
  end
  return found
end

-- shard_of: as keys.py has it.
local function shard_of(op, shards)
  local crc = 0
  for at = 1, #op do
    crc = bit.bxor(crc, bit.lshift(op:byte(at), 8))
    for _ = 1, 8 do
      crc = bit.lshift(crc, 1)
      if bit.band(crc, 0x10000) ~= 0 then crc = bit.bxor(crc, 0x11021) end
    end
  end
  return crc % shards
end

-- place: the parts of a key: with the tag, up to the shard, the shard.
local function place(keys, kind)
  local space, shard = (keys[1] or ''):match('^({.+%.)(%d+)}:' .. kind .. '$')
  if #keys ~= 1 or not space then
    refuse('InvalidInput', 'key: expected one, {namespace.shard}:' .. kind .. ', as in {smqueue.0}:' .. kind)
  end
  return space .. shard .. '}:', space, tonumber(shard)
end

local function shards_of(space)
  local found = redis.pcall('HGET', space .. '0}:meta', 'shards')
  if type(found) == 'table' then return nil end  -- of a cluster, on another node: then a worker refuses
  if not found then
    refuse('InvalidInput', 'key: there is no namespace ' .. space:sub(2, -2) .. ' yet: is it spelled as its workers do?')
  end
  return tonumber(found)
end

-- ask: leave a request; returns the key of its answer. As ask.lua.
local function ask(keys, op, asked, said)
  local prefix, space, shard = place(keys, 'requests')
  local shards = shards_of(space)
  if shards and shard_of(op, shards) ~= shard then
    local there = string.format('%s%d}:requests', space, shard_of(op, shards))
    refuse('InvalidInput', 'key: operation ' .. op .. ' is in another shard: call with ' .. there)
  end
  if redis.call('LLEN', keys[1]) >= WAITING then
    refuse('OutboxFull', string.format('%d requests wait for a worker already: ask again later', WAITING))
  end
  local clock, id, marker = redis.call('TIME'), '', ''
  repeat  -- unlike anything asked before, also when the clock was set back
    id = redis.sha1hex(id .. clock[1] .. ' ' .. clock[2] .. ' ' .. op .. ' ' .. said)
    marker = prefix .. 'marker:ask%3A' .. id
  until redis.call('SET', marker, '1', 'NX', 'EX', KEPT_S)
  asked.id, asked.operation_id, asked.text, asked.due = id, op, said, 0
  redis.call('RPUSH', keys[1], cjson.encode(asked))
  redis.call('ZADD', prefix .. 'schedule', math.floor(clock[1] * 1000 + clock[2] / 1000), '~requests')
  redis.call('PUBLISH', prefix .. 'wake', '')
  return prefix .. 'reply:' .. id
end

local function signal(keys, args)
  local op, signal_name, payload = name('operation_id', args[1]), name('signal', args[2]), json('payload', args[3])
  local given = options(args, 4, {module = true, machine = true, id = true})
  local asked = {kind = 'client-signal', signal = signal_name, module = given.module, machine = given.machine}
  asked.signal_id = given.id
  return ask(keys, op, asked, payload)
end

local function add(keys, args)
  local op, module, type_name = name('operation_id', args[1]), args[2], name('type', args[3])
  local state, given = json('state', args[4]), options(args, 5, {exist_ok = true})
  local asked = {kind = 'client-add', type = type_name, exist_ok = given.exist_ok == '1'}
  if module ~= '' then asked.module = name('module', module) end
  return ask(keys, op, asked, state)
end

local function key(keys, args)
  local op, _, space = name('operation_id', args[1]), place(keys, 'meta')
  return string.format('%s%d}:requests', space, shard_of(op, shards_of(space) or 1))
end

-- told: what was refused as an error reply, also in versions that would put the line of the script into it.
local function told(run)
  return function(keys, args)
    local done, reply = pcall(run, keys, args)
    if done then return reply end
    if type(reply) == 'table' and reply.err then return redis.error_reply(reply.err) end
    return redis.error_reply(tostring(reply))
  end
end

redis.register_function('smqueue_signal', told(signal))
redis.register_function('smqueue_add', told(add))
redis.register_function{function_name = 'smqueue_key', callback = told(key), flags = {'no-writes'}}
