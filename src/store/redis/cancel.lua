-- Asks the turn's owner to stop. A flag and not a message, since the owner may be anywhere.
local conv, req = unpack(KEYS)
local turn, channel, payload = ARGV[1], ARGV[2], ARGV[3]

if redis.call('HGET', req, 'kind') ~= 'turn' then return {'missing'} end
if redis.call('HGET', conv, 'active') == turn then
  redis.call('HSET', conv, 'cancelled', '1')
  redis.call('PUBLISH', channel, payload)
  return {'asked'}
end
return {'over'}
