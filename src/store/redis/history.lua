-- The newest entries before a place, newest first. The stream of deltas is not looked at.
local log = KEYS[1]
local from, most, budget = '(' .. ARGV[1] .. '-0', tonumber(ARGV[2]), tonumber(ARGV[3])
-- Entries that are looked at at once.
local STEP = 16

local events, size = {}, 0
while #events < most do
  local count = math.min(STEP, most - #events)
  local batch = redis.call('XREVRANGE', log, from, '-', 'COUNT', string.format('%d', count))
  for _, entry in ipairs(batch) do
    -- The body is every entry's fourth field.
    size = size + #entry[2][8]
    if #events > 0 and size > budget then return {'history', events} end
    events[#events + 1] = entry
  end
  if #batch < count then break end
  from = '(' .. batch[count][1]
end
return {'history', events}
