-- suspect: a machine whose last claim ended in nothing is about to run alone, or its cancel handler to be run; should it not
-- come back, this is noted.
-- KEYS  schedule
-- ARGV  race prefix, entry, field of the race where it is counted
-- Returns how often it has run so without coming back, this time included; 0 when its arming is over
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then return 0 end
return redis.call('HINCRBY', ARGV[1] .. parts(ARGV[2]), ARGV[3], 1)
