-- Where the message of a request is, if the request is known, and the options of its turn.
local known = redis.call('HMGET', KEYS[1], 'start', 'options')
return {'found', known[1] or '', known[2] or ''}
