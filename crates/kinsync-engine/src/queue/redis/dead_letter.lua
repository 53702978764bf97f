-- Moves entries to the dead letters. KEYS: stream, dead letters. ARGV: group, time, bound of their number, oldest id that stays,
-- then id and reason for each entry.
for i = 5, #ARGV, 2 do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
  if found[1] then
    local fields = found[1][2]
    for _, word in ipairs({ 'dead_at', ARGV[2], 'reason', ARGV[i + 1] }) do fields[#fields + 1] = word end
    redis.call('XADD', KEYS[2], '*', unpack(fields))
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[3])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[4])
