"""Each operation on Redis as a generator without I/O: it yields round trips and is sent the replies."""
