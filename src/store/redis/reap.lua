-- Takes over the active turn if its lease is over. Two who try at once: the second finds the lease of
-- the first.
local conv, lease = unpack(KEYS)
local step, lease_ms = ARGV[1], ARGV[2]

local state = redis.call('HMGET', conv, 'active', 'start', 'visible', 'cancelled', 'options', 'taken')
if not state[1] or redis.call('EXISTS', lease) == 1 then return {'none'} end
-- Random like that of begin, for the same reason.
local epoch = string.format('%d', redis.call('HINCRBY', conv, 'epoch', step))
local attempt = string.format('%d', redis.call('HINCRBY', conv, 'attempt', 1))
-- The time that is there is that of an earlier turn if this one was never taken over, and was begun by a
-- replica of a version that did not know of it.
local since = tonumber(attempt) > 2 and state[6] or ''
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', conv, 'number', '0', 'taken', now)
redis.call('SET', lease, epoch, 'PX', lease_ms)
return {'reaped', state[1], epoch, state[2], attempt, state[3], state[4], state[5], since}
