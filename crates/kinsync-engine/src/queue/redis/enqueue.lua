-- Stores new entries. KEYS: stream, seen ids. ARGV: bound of the depth, number of ids to remember, then five values for each
-- entry. Returns for each entry 1 (new), 0 (known) or -1 (full).
local depth, most, answers = redis.call('XLEN', KEYS[1]), tonumber(ARGV[1]), {}
local now = redis.call('TIME')
local score = now[1] * 1000000 + now[2]
for i = 3, #ARGV, 5 do
  local id, scheme = ARGV[i], ARGV[i + 1]
  -- A sighting can be made again by the next request.
  local bound = scheme == 'login' and most / 2 or most
  if redis.call('ZSCORE', KEYS[2], id) then
    -- A write, because WAIT waits for the last write of its connection: an entry from another connection may not be replicated.
    redis.call('ZINCRBY', KEYS[2], 1, id)
    answers[#answers + 1] = 0
  elseif depth >= bound then
    answers[#answers + 1] = -1
  else
    -- The entry first: an id without its entry would lose the repetition.
    redis.call('XADD', KEYS[1], '*', 'format', '1', 'event_id', id, 'scheme', scheme, 'received_at', ARGV[i + 2], 'signed_at', ARGV[i + 3],
      'body', ARGV[i + 4])
    redis.call('ZADD', KEYS[2], score, id)
    depth = depth + 1
    answers[#answers + 1] = 1
  end
end
local surplus = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[2])
if surplus > 0 then redis.call('ZPOPMIN', KEYS[2], surplus) end
return answers
