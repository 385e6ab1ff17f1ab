-- Where the message of a request is, if the request is known.
return {'found', redis.call('HGET', KEYS[1], 'start') or ''}
