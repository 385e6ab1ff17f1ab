-- The events after a position, from both streams, and the active turn: one step, so that a reader who
-- sees no active turn has seen its end, or has it in what comes next.
local conv, log, deltas, lease, watched = unpack(KEYS)
local after, tag, most, watching, watched_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local state = redis.call('HMGET', conv, 'counter', 'active')
if not state[1] then return {'missing'} end

local function holds(stream)
  local entry = redis.call('XRANGE', stream, after .. '-0', after .. '-0')[1]
  -- The tag is every entry's first field.
  return entry and entry[2][2] == tag
end
-- A range after a place that was lost in a failover would be empty, without an error, for ever.
if tag ~= '' and not holds(log) and not holds(deltas) then return {'unknown'} end

local active = state[2] or ''
local orphaned = '0'
if active ~= '' then
  if redis.call('EXISTS', lease) == 0 then orphaned = '1' end
  if watching == '1' then redis.call('SET', watched, active, 'PX', watched_ms) end
end
local from = '(' .. after .. '-0'
return {'page', active, orphaned,
  redis.call('XRANGE', log, from, '+', 'COUNT', most),
  redis.call('XRANGE', deltas, from, '+', 'COUNT', most)}
