-- Adds changes to the knowledge log. Of each entry only the last change is kept: its id is in the
-- order once, under its newest revision.
local revision, order, changes = unpack(KEYS)
local channel = ARGV[1]
-- Then for each change: the entry's id, the change.
local newest = redis.call('GET', revision) or '0'
for at = 2, #ARGV, 2 do
  newest = string.format('%d', redis.call('INCR', revision))
  redis.call('ZADD', order, newest, ARGV[at])
  redis.call('HSET', changes, ARGV[at], ARGV[at + 1])
end
if #ARGV > 1 then redis.call('PUBLISH', channel, newest) end
return {'taught', newest}
