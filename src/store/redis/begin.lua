-- Claims a request and begins its turn, or logs all of it where the answer is given. One script is one
-- step: of many equal requests, at whichever replicas, exactly one gets past the first check.
local conv, lease, log, deltas, req = unpack(KEYS)
local fingerprint, turn, tag, body, options = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local existing, step, lease_ms, retention, req_ttl = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local principal, id, channel, payload = ARGV[11], ARGV[12], ARGV[13], ARGV[14]
local late = ARGV[15]
-- Then for each event of the answer: whether it is a delta, its tag, its body. The last one is terminal.
local before = 15
local count = (#ARGV - before) / 3

local known = redis.call('HMGET', req, 'fingerprint', 'start', 'end')
if known[1] then
  if known[1] ~= fingerprint then return {'reused'} end
  -- A write, so that a WAIT that follows also covers what an earlier try has written.
  redis.call('HSET', req, 'fingerprint', fingerprint)
  return {'known', known[2], known[3] or ''}
end

local state = redis.call('HMGET', conv, 'counter', 'active', 'start')
if not state[1] and existing == '1' then return {'missing'} end
if state[2] then return {'busy', state[2], redis.call('EXISTS', lease) == 0 and '1' or '0'} end

-- A script's clock is the server's own; those of the replicas are never compared.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local start = string.format('%d', redis.call('HINCRBY', conv, 'counter', 1))
-- The step is random. A server that has lost its newest writes hands out epochs a second time, and
-- two owners of one epoch must not take each other's appends for their own repeated ones.
local epoch = string.format('%d', redis.call('HINCRBY', conv, 'epoch', step))
redis.call('XADD', log, start .. '-0', 'tag', tag, 'turn', turn, 'time', now, 'body', body)
-- Readers of the previous turn may still be behind; those of the one before it are not.
if state[3] then redis.call('XTRIM', deltas, 'MINID', state[3] .. '-0') end
local newest, visible = start, '0'
for event = 1, count do
  local at = before + (event - 1) * 3
  local is_delta = ARGV[at + 1] == '1'
  newest = string.format('%d', redis.call('HINCRBY', conv, 'counter', 1))
  redis.call('XADD', is_delta and deltas or log, newest .. '-0', 'tag', ARGV[at + 2], 'turn', turn,
    'time', now, 'body', ARGV[at + 3], 'number', epoch .. ':' .. string.format('%d', event))
  if is_delta then visible = '1' end
end
redis.call('HSET', conv, 'principal', principal, 'id', id, 'turn', turn, 'start', start,
  'options', options, 'number', string.format('%d', count), 'newest', newest, 'attempt', '1',
  'visible', visible, 'cancelled', '0', 'taken', '')
redis.call('HSET', req, 'fingerprint', fingerprint, 'start', start, 'kind', 'turn', 'options', options)
if count == 0 then
  redis.call('HSET', conv, 'active', turn)
  redis.call('SET', lease, epoch, 'PX', lease_ms)
else
  redis.call('HSET', req, 'end', newest)
end
redis.call('PEXPIRE', conv, retention)
redis.call('PEXPIRE', log, retention)
redis.call('PEXPIRE', deltas, count == 0 and retention or late)
redis.call('PEXPIRE', req, req_ttl)
redis.call('PUBLISH', channel, payload)
return {'new', start, epoch, now}
