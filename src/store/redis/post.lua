-- Logs a message that wants no answer. It needs no epoch: anybody may speak at any time.
local conv, log, deltas, req = unpack(KEYS)
local fingerprint, tag, body, existing = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local retention, req_ttl, principal, id, channel, payload =
  ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local known = redis.call('HMGET', req, 'fingerprint', 'start')
if known[1] then
  if known[1] ~= fingerprint then return {'reused'} end
  -- A write, so that a WAIT that follows also covers what an earlier try has written.
  redis.call('HSET', req, 'fingerprint', fingerprint)
  return {'posted', known[2]}
end
local state = redis.call('HMGET', conv, 'counter', 'active')
if not state[1] and existing == '1' then return {'missing'} end

local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local start = string.format('%d', redis.call('HINCRBY', conv, 'counter', 1))
redis.call('HSET', conv, 'principal', principal, 'id', id)
redis.call('XADD', log, start .. '-0', 'tag', tag, 'turn', '', 'time', now, 'body', body)
redis.call('HSET', req, 'fingerprint', fingerprint, 'start', start, 'kind', 'post')
redis.call('PEXPIRE', conv, retention)
redis.call('PEXPIRE', log, retention)
-- Without an active turn the deltas keep their shorter time.
if state[2] then redis.call('PEXPIRE', deltas, retention) end
redis.call('PEXPIRE', req, req_ttl)
redis.call('PUBLISH', channel, payload)
return {'posted', start}
