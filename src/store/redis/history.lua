-- The newest entries before a place, newest first. The stream of deltas is not looked at.
return {'history', redis.call('XREVRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '-', 'COUNT', ARGV[2])}
