-- Claims entries, oldest first. KEYS: stream. ARGV: group, number of entries, bytes after which it stops, idle time to set, idle
-- time at which a claim has ended, pending entry at which it begins. Returns the newest id of the stream, the pending entry at which the next
-- claim begins, and for each entry its id, earlier deliveries and fields.
local stream, group, most, bytes = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- First, what has no effect, with each command that follows: what a script has done before one that the user may not run stays done, and
-- entries that are pending without a lease come again after 30 days.
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
redis.call('XPENDING', stream, group, '0-1', '0-1', 1)
redis.call('XCLAIM', stream, group, group, 0, '0-1', 'JUSTID')
-- Of the pending entries, those after this id: none.
redis.call('XREADGROUP', 'GROUP', group, group, 'COUNT', 1, 'STREAMS', stream, '18446744073709551615-18446744073709551614')
local claimed, cursor, pages, is_long = {}, ARGV[6], 0, false
local function room()
  return bytes > 0 and math.min(most - #claimed, 16) or 0
end
local function add(entry, earlier)
  claimed[#claimed + 1] = { entry[1], earlier, entry[2] }
  for _, value in ipairs(entry[2]) do bytes = bytes - #value end
end
repeat
  local page = redis.call('XAUTOCLAIM', stream, group, group, ARGV[5], cursor, 'COUNT', room())
  cursor, pages = page[1], pages + 1
  for _, entry in ipairs(page[2]) do
    local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)
    add(entry, pending[1][4] - 1)
  end
  -- A page looks at ten times as many entries as it may claim; to look at 100,000 would hold up the server for 250 ms.
  is_long = pages >= 16 + #claimed / 16
until cursor == '0-0' or is_long or room() == 0
-- Oldest first, unless the pending entries are too many for one claim: each of them has its turn then.
if ARGV[6] == '0-0' and not is_long then cursor = '0-0' end
while room() > 0 do
  local read = redis.call('XREADGROUP', 'GROUP', group, group, 'COUNT', room(), 'STREAMS', stream, '>')
  if not read then break end
  for _, entry in ipairs(read[1][2]) do add(entry, 0) end
end
for i = 1, #claimed, 1000 do
  local lease = { 'XCLAIM', stream, group, group, 0 }
  for n = i, math.min(i + 999, #claimed) do lease[#lease + 1] = claimed[n][1] end
  for _, word in ipairs({ 'IDLE', ARGV[4], 'JUSTID' }) do lease[#lease + 1] = word end
  redis.call(unpack(lease))
end
return { newest[1] and newest[1][1] or '0-0', cursor, claimed }
