-- The changes after a revision, oldest first: revision, change, revision, change …
local revision, order, changes = unpack(KEYS)
local after, most = ARGV[1], ARGV[2]

local found = redis.call('ZRANGEBYSCORE', order, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local result = {'learnt', redis.call('GET', revision) or '0'}
-- One by one: unpack for a single HMGET would overflow Lua's stack.
for at = 1, #found, 2 do
  result[#result + 1] = found[at + 1]
  result[#result + 1] = redis.call('HGET', changes, found[at])
end
return result
