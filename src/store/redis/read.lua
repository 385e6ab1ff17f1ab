-- The events after a position, from both streams, and the active turn: one step, so that a reader who
-- sees no active turn has seen its end, or has it in what comes next.
local conv, log, deltas, lease, watched = unpack(KEYS)
local after, tag, most, watching, watched_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local budget = tonumber(ARGV[6])
-- Entries that are looked at at once, of each stream.
local STEP = 16

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

-- Gives a stream's next entry, again and again until it is taken.
local function reader(stream)
  local from, batch, at, more = '(' .. after .. '-0', {}, 1, true
  local function next_one()
    if at > #batch and more then
      batch, at = redis.call('XRANGE', stream, from, '+', 'COUNT', STEP), 1
      more = #batch == STEP
      if more then from = '(' .. batch[STEP][1] end
    end
    return batch[at]
  end
  return next_one, function() at = at + 1 end
end

-- Ids have no leading zeros. As numbers they would not be exact.
local function earlier(one, other)
  if #one[1] ~= #other[1] then return #one[1] < #other[1] end
  return one[1] < other[1]
end

-- Whatever is cut off is the end of what both streams hold together, so that no reader misses any.
local events, size, more = {}, 0, '0'
local next_said, take_said = reader(log)
local next_delta, take_delta = reader(deltas)
while true do
  local said, delta = next_said(), next_delta()
  local is_delta = delta and (not said or earlier(delta, said))
  local entry = is_delta and delta or said
  if not entry then break end
  -- The body is every entry's fourth field.
  size = size + #entry[2][8]
  if #events == most or (#events > 0 and size > budget) then
    more = '1'
    break
  end
  events[#events + 1] = entry
  if is_delta then take_delta() else take_said() end
end
return {'page', active, orphaned, more, events}
