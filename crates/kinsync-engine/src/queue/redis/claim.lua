-- Claims entries, oldest first. KEYS: stream. ARGV: group, number of entries, idle time to set, idle time at which a claim has
-- ended. Returns the newest id of the stream, and for each entry its id, earlier deliveries and fields.
local stream, group, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
local claimed, cursor = {}, '0-0'
repeat
  local page = redis.call('XAUTOCLAIM', stream, group, group, ARGV[4], cursor, 'COUNT', most - #claimed)
  cursor = page[1]
  for _, entry in ipairs(page[2]) do
    local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)
    claimed[#claimed + 1] = { entry[1], pending[1][4] - 1, entry[2] }
  end
until cursor == '0-0' or #claimed >= most
if #claimed < most then
  local read = redis.call('XREADGROUP', 'GROUP', group, group, 'COUNT', most - #claimed, 'STREAMS', stream, '>')
  for _, entry in ipairs(read and read[1][2] or {}) do
    claimed[#claimed + 1] = { entry[1], 0, entry[2] }
  end
end
for i = 1, #claimed, 1000 do
  local lease = { 'XCLAIM', stream, group, group, 0 }
  for n = i, math.min(i + 999, #claimed) do lease[#lease + 1] = claimed[n][1] end
  for _, word in ipairs({ 'IDLE', ARGV[3], 'JUSTID' }) do lease[#lease + 1] = word end
  redis.call(unpack(lease))
end
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
return { newest[1] and newest[1][1] or '0-0', claimed }
