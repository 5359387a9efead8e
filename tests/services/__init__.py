"""Real servers for the tests, and the faults between them and us.

    discovery.py   which servers can be started here, or why not
    keeper.py      where their files stand, and who ends them when we are killed
    postgres.py    one throw-away PostgreSQL: start, stop, kill, standby, promote
    pooler.py      pgbouncer in transaction mode in front of one
    proxy.py       a TCP proxy that delays, swallows, cuts and withholds; wire.py knows where a request of PostgreSQL ends
    fixtures.py    what tests ask for: postgres, postgres_url, own_postgres, pooler_url
    install.py     what CI installs; `python -m tests.services` is `make services`

Nothing here listens beyond loopback, and nothing outlives the process that started it.
"""
