-- Appends events to the owner's turn, all or none, and renews its lease.
local conv, lease, log, deltas, req, watched = unpack(KEYS)
local turn, epoch, first, terminal = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local lease_ms, retention, req_ttl, late = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local channel, payload = ARGV[9], ARGV[10]
-- Then for each event: whether it is a delta, its tag, its body.
local before = 10
local count = (#ARGV - before) / 3

local state = redis.call('HMGET', conv, 'turn', 'epoch', 'active', 'number', 'newest', 'cancelled', 'start',
  'counter')
if state[1] ~= turn or state[2] ~= epoch then return {'fenced'} end
local active, stored, newest = state[3], tonumber(state[4]), state[5]
-- The owner has had more acknowledged than is here: a failover has lost it.
if first > stored + 1 then return {'fenced'} end

-- With the turn's first events, its end and each renewal, which an owner asks for all the while: a call for
-- each piece of text as well would be a quarter of what the piece costs.
local function keep()
  redis.call('PEXPIRE', conv, retention)
  redis.call('PEXPIRE', log, retention)
  redis.call('PEXPIRE', deltas, terminal and late or retention)
end

local function is_watched()
  return redis.call('GET', watched) == turn and '1' or '0'
end

-- Where a number of this epoch was stored, for a repetition of a call that is not the last one.
local function place_of(number)
  local wanted = epoch .. ':' .. number
  for _, stream in ipairs({deltas, log}) do
    for _, entry in ipairs(redis.call('XRANGE', stream, state[7] .. '-0', '+')) do
      for field = 1, #entry[2], 2 do
        if entry[2][field] == 'number' and entry[2][field + 1] == wanted then
          return string.match(entry[1], '^%d+')
        end
      end
    end
  end
  return newest
end

if count > 0 and first + count - 1 <= stored then
  -- Repeated, maybe after the turn's end. Renewing is also a write, which a WAIT then covers.
  if active then redis.call('SET', lease, epoch, 'PX', lease_ms) end
  redis.call('PEXPIRE', conv, retention)
  local last = first + count - 1
  local place = newest
  if last < stored then place = place_of(string.format('%d', last)) end
  return {'stored', place, is_watched(), '0', '0'}
end
if not active then return {'fenced'} end

-- An owner whose lease is over may go on as long as nobody has reaped it.
redis.call('SET', lease, epoch, 'PX', lease_ms)
if state[6] == '1' and not terminal then return {'cancelled'} end
if count == 0 then
  keep()
  return {'stored', newest, is_watched(), '0', '0'}
end

local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local known = stored - first + 1
local counter, visible = tonumber(state[8]), false
for event = known + 1, count do
  local at = before + (event - 1) * 3
  local is_delta, tag, body = ARGV[at + 1] == '1', ARGV[at + 2], ARGV[at + 3]
  counter = counter + 1
  newest = string.format('%d', counter)
  redis.call('XADD', is_delta and deltas or log, newest .. '-0', 'tag', tag, 'turn', turn,
    'time', now, 'body', body, 'number', epoch .. ':' .. string.format('%d', first + event - 1))
  visible = visible or is_delta
end
local changed = {'counter', newest, 'newest', newest, 'number', string.format('%d', first + count - 1)}
if visible then
  changed[7], changed[8] = 'visible', '1'
end
redis.call('HSET', conv, unpack(changed))
if first == 1 or terminal then keep() end
if terminal then
  redis.call('HDEL', conv, 'active')
  redis.call('DEL', lease)
  redis.call('HSET', req, 'end', newest)
  redis.call('PEXPIRE', req, req_ttl)
end
-- Readers beside the owner get text from its memory, and readers elsewhere leave their mark with the read
-- after which they wait, so that no text is missed: without them there is nobody to wake.
local is_read = is_watched()
if terminal or is_read == '1' then redis.call('PUBLISH', channel, payload) end
return {'stored', newest, is_read, string.format('%d', count - known), now}
