-- answer: a client's request is done; the answer is kept for a while.
-- KEYS  requests, reply, marker of what was done for it
-- ARGV  item, answer (JSON), kept s
-- Returns 1 when this was the one to answer; the reply's own name is the bell that tells of it
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[3])
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('SPUBLISH', KEYS[2], '')
return 1
