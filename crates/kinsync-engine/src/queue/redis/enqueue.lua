-- Stores new entries. KEYS: stream, seen ids. ARGV: bound of the depth, number of ids to remember, then five values for each
-- entry. Returns for each entry 1 (new), 0 (known) or -1 (full).
local stream, seen, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
-- First, what has no effect, with each command that writes later: what a script has done before one that the user may not run stays done.
redis.call('ZADD', seen, 'XX', 0, '')
redis.call('ZPOPMIN', seen, 0)
local depth, ids, answers, stored, scores = redis.call('XLEN', stream), {}, {}, {}, {}
local surplus, now = redis.call('ZCARD', seen) - tonumber(ARGV[2]), redis.call('TIME')
for i = 3, #ARGV, 5 do ids[#ids + 1] = ARGV[i] end
local known = redis.call('ZMSCORE', seen, unpack(ids))
local function remember(id, score)
  scores[#scores + 1] = score
  scores[#scores + 1] = id
end
for n, id in ipairs(ids) do
  local i = 5 * n - 2
  -- A sighting can be made again by the next request.
  local bound = ARGV[i + 1] == 'login' and most / 2 or most
  if stored[id] then
    answers[n] = 0
  elseif known[n] then
    -- A write, because WAIT waits for the last write of its connection: an entry from another connection may not be replicated.
    remember(id, known[n] + 1)
    answers[n] = 0
  elseif depth >= bound then
    answers[n] = -1
  else
    redis.call('XADD', stream, '*', 'format', '1', 'event_id', id, 'scheme', ARGV[i + 1], 'received_at', ARGV[i + 2], 'signed_at',
      ARGV[i + 3], 'body', ARGV[i + 4])
    remember(id, now[1] * 1000000 + now[2])
    stored[id], depth, surplus, answers[n] = true, depth + 1, surplus + 1, 1
  end
end
-- After the entries: an id without its entry would lose the repetition.
if scores[1] then redis.call('ZADD', seen, unpack(scores)) end
if surplus > 0 then redis.call('ZPOPMIN', seen, surplus) end
return answers
