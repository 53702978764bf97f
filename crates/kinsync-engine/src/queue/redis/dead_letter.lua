-- Moves entries to the dead letters. KEYS: stream, dead letters, seen ids. ARGV: group, time, bound of their number, oldest id that stays,
-- bound of their memory, then id and reason for each entry. Returns how many the bounds removed.
local stream, dead, group = KEYS[1], KEYS[2], ARGV[1]
-- First, what has no effect, with each command that follows the first write: what a script has done before one that the user may not run
-- stays done, and the letters would be moved again and again.
-- ZADD is one that a server without memory refuses: after XACK, which it carries out, it would refuse none.
redis.call('ZADD', KEYS[3], 'XX', 0, '')
redis.call('XACK', stream, group, '0-1')
redis.call('XDEL', stream, '0-1')
redis.call('XTRIM', dead, 'MINID', '0-1')
redis.call('XLEN', dead)
redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 1)
for i = 6, #ARGV, 2 do
  local found = redis.call('XRANGE', stream, ARGV[i], ARGV[i])
  if found[1] then
    local fields = found[1][2]
    for _, word in ipairs({ 'dead_at', ARGV[2], 'reason', ARGV[i + 1] }) do fields[#fields + 1] = word end
    redis.call('XADD', dead, '*', unpack(fields))
    redis.call('XACK', stream, group, ARGV[i])
    redis.call('XDEL', stream, ARGV[i])
  end
end
local removed = redis.call('XTRIM', dead, 'MAXLEN', ARGV[3]) + redis.call('XTRIM', dead, 'MINID', ARGV[4])
local most, left = tonumber(ARGV[5]), redis.call('XLEN', dead)
while left > 0 do
  -- Without samples it looks at every node, a hundred entries or one large one each.
  local used = redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 0)
  if used <= most then break end
  -- The share that is too much, if all were of one size.
  local surplus = math.max(1, math.floor(left * (1 - most / used)))
  removed = removed + redis.call('XTRIM', dead, 'MAXLEN', left - surplus)
  left = left - surplus
end
return removed
