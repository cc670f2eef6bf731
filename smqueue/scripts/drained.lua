-- drained: a drain has found nothing more, and clears the flag that says a hint is under way.
-- KEYS  hint, schedule
-- Returns 1 when something has fallen due meanwhile: look once again
redis.call('DEL', KEYS[1])
return redis.call('ZCOUNT', KEYS[2], '-inf', now) > 0 and 1 or 0
