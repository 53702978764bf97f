-- Moves a dead letter back into the stream. KEYS: stream, dead letters, seen ids. ARGV: id. Returns the number of moved letters.
-- First, what has no effect: a user that may not run the last command would add the letter again and again.
-- ZADD is one that a server without memory refuses: after XDEL, which it carries out, it would refuse none.
redis.call('ZADD', KEYS[3], 'XX', 0, '')
redis.call('XDEL', KEYS[2], '0-1')
local found = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])
if not found[1] then return 0 end
local kept, fields = {}, found[1][2]
for i = 1, #fields, 2 do
  if fields[i] ~= 'dead_at' and fields[i] ~= 'reason' then
    kept[#kept + 1] = fields[i]
    kept[#kept + 1] = fields[i + 1]
  end
end
redis.call('XADD', KEYS[1], '*', unpack(kept))
return redis.call('XDEL', KEYS[2], ARGV[1])
