-- The verb `receive` (how these functions are written: send.sql), and what a queue is between two of them.

-- What a connection remembers of a queue: (1) rank below which nothing is ready, (2) when to look below it again; (3) instant before which nothing is left to
-- time, (4) when to look before it again. Why: a long transaction anywhere keeps vacuum from taking away the index entries of rows that are gone; they gather at
-- the low end of every index that is read from there, and a receive would walk through all of them, more each time. So it starts behind them, and looks at the low
-- end only now and then, for what a transaction brought that began before the mark and ended behind it.
-- (2) and (4) are microseconds on the server's own clock. It is a memory of this session: lost, or of another queue's pooled session, it costs one longer look.
CREATE OR REPLACE FUNCTION beltline._memo(p_queue int) RETURNS bigint[] LANGUAGE sql STABLE AS $$
  SELECT coalesce(string_to_array(nullif(current_setting('beltline.q' || p_queue, true), ''), ' ')::bigint[], '{-9000000000000000000,0,-9000000000000000000,0}')
$$;

-- What time has brought to a queue since p_from: due -> ready, expired -> done. Pages of 500; what is left over waits for the next one. Returns how many moved.
CREATE OR REPLACE FUNCTION beltline._turn(p_now bigint, p_queue int, p_from bigint DEFAULT -9000000000000000000, p_expire boolean DEFAULT true) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_moved int := 0; v_page int; v_id uuid; f beltline.fact; v_laned beltline.fact[]; v_ids uuid[];
BEGIN
  FOR i IN 1..40 LOOP
    WITH due AS (
      DELETE FROM beltline.delayed WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM beltline.delayed WHERE queue = p_queue AND since BETWEEN p_from AND p_now ORDER BY since, seq LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING *),
    r AS (INSERT INTO beltline.ready(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
      SELECT rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error FROM due WHERE flags & 8 = 0),
    c AS (INSERT INTO beltline.delta SELECT p_queue, count(*), -count(*), 0, 0, 0, 0 FROM due HAVING count(*) > 0)
    SELECT count(*), array_agg(ROW(1, false, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, NULL, NULL, NULL)::beltline.fact)
      FILTER (WHERE flags & 8 <> 0) INTO v_page, v_laned FROM due;
    IF v_laned IS NOT NULL THEN
      PERFORM beltline._put_in_lane(ROW(l.*)::beltline.fact) FROM unnest(v_laned) l;
      PERFORM beltline._flow_moved(ARRAY(SELECT id FROM unnest(v_laned)), 0, 1);
    END IF;
    v_moved := v_moved + v_page;
    EXIT WHEN v_page < 500;
  END LOOP;
  WITH due AS (UPDATE beltline.blocked SET was = 1 WHERE ctid = ANY(ARRAY(
      SELECT ctid FROM beltline.blocked WHERE queue = p_queue AND was = 0 AND since BETWEEN p_from AND p_now LIMIT 5000 FOR UPDATE SKIP LOCKED)) RETURNING id, flags),
    c AS (INSERT INTO beltline.delta SELECT p_queue, count(*), -count(*), 0, 0, 0, 0 FROM due HAVING count(*) > 0)
    SELECT v_moved + count(*), array_agg(id) FILTER (WHERE flags & 8 <> 0) INTO v_moved, v_ids FROM due;
  PERFORM beltline._flow_moved(v_ids, 0, 1) WHERE v_ids IS NOT NULL;
  IF NOT p_expire THEN
    RETURN v_moved;
  END IF;
  FOR v_id IN SELECT id FROM (
      (SELECT id, expires, seq FROM beltline.ready WHERE queue = p_queue AND expires IS NOT NULL AND expires BETWEEN p_from AND p_now ORDER BY expires LIMIT 5000)
      UNION ALL (SELECT id, expires, seq FROM beltline.flow_ready WHERE queue = p_queue AND expires IS NOT NULL AND expires BETWEEN p_from AND p_now ORDER BY expires LIMIT 5000)
      UNION ALL (SELECT id, expires, seq FROM beltline.delayed WHERE queue = p_queue AND expires IS NOT NULL AND expires BETWEEN p_from AND p_now ORDER BY expires LIMIT 5000)
      UNION ALL (SELECT id, expires, seq FROM beltline.blocked WHERE queue = p_queue AND expires IS NOT NULL AND expires BETWEEN p_from AND p_now ORDER BY expires LIMIT 5000)) e
      ORDER BY expires, seq LOOP
    f := beltline._remove(v_id, '{0,1}');   -- another may have been quicker, or it went with its run
    IF f.id IS NOT NULL THEN
      PERFORM beltline._end(p_now, f, 3::smallint, '');
      PERFORM beltline._judge_of(p_now, ARRAY[v_id]);
      v_moved := v_moved + 1;
    END IF;
  END LOOP;
  RETURN v_moved;
END $$;

CREATE OR REPLACE FUNCTION beltline._judge_of(p_now bigint, p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_runs uuid[];
BEGIN
  SELECT array_agg(DISTINCT run) INTO v_runs FROM beltline.body WHERE id = ANY(p_ids) AND run IS NOT NULL;
  IF v_runs IS NOT NULL THEN
    PERFORM beltline._judge(p_now, v_runs);
  END IF;
END $$;

-- MessagePack of Failure("lease_lost", "", text, ""): what is noted when a lease ran out.
CREATE OR REPLACE FUNCTION beltline._lease_over() RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT '\x94aa6c656173655f6c6f7374a0d931546865206c656173652072616e206f75743a2069747320776f726b65722064696564206f72206c6f737420746f7563682ea0'::bytea $$;

-- A lease that is over was the last one of its message: cancelled if somebody asked (p_reason), else dead. False: it went with its run meanwhile.
CREATE OR REPLACE FUNCTION beltline._last_over(p_now bigint, f beltline.fact, p_reason text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM beltline.lease WHERE id = f.id AND epoch = f.epoch;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM beltline._note(p_now, f, 'lost', 0, '', beltline._lease_over());
  f.lost := f.lost + 1;
  IF p_reason IS NOT NULL THEN
    PERFORM beltline._end(p_now, f, 2::smallint, p_reason);
  ELSE
    PERFORM beltline._die(p_now, f, 'poison: ' || f.lost || ' deliveries never answered', '', beltline._lease_over());
  END IF;
  PERFORM beltline._judge_of(p_now, ARRAY[f.id]);
  RETURN true;
END $$;

-- Leases that are over: cancelled if somebody asked, dead if it was the last one allowed, else handed out again, at most p_limit (0: a sweep, none).
CREATE OR REPLACE FUNCTION beltline._over(p_now bigint, p_queue int, p_limit int, p_lease bigint, p_worker int, p_from bigint DEFAULT -9000000000000000000) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE f beltline.fact; v_again int := 0; v_max int; v_reason text;
BEGIN
  SELECT max_deliveries INTO v_max FROM beltline.queue WHERE n = p_queue;
  FOR f IN SELECT 2::smallint, false, l.queue, l.seq, l.id, l.rank, l.since, l.epoch, l.failed, l.lost, l.flags, NULL::bigint, NULL::text, l.error, l.due, l.started, l.worker
      FROM beltline.lease l WHERE l.ctid = ANY(ARRAY(
        SELECT ctid FROM beltline.lease WHERE queue = p_queue AND due BETWEEN p_from AND p_now ORDER BY due, seq LIMIT p_limit + 500 FOR UPDATE SKIP LOCKED)) ORDER BY l.due, l.seq LOOP
    SELECT reason INTO v_reason FROM beltline.asked WHERE id = f.id;
    IF v_reason IS NOT NULL OR f.lost + 1 >= v_max THEN
      PERFORM beltline._last_over(p_now, f, v_reason);
    ELSIF v_again < p_limit THEN
      PERFORM beltline._note(p_now, f, 'lost', 0, '', beltline._lease_over());
      UPDATE beltline.lease SET epoch = epoch + 1, lost = lost + 1, due = p_now + p_lease, started = p_now, worker = p_worker WHERE id = f.id;
      v_again := v_again + 1;
      RETURN NEXT f.id;
    END IF;
  END LOOP;
END $$;

-- Backpressure: how many messages may be taken without flooding a queue that this one feeds. Leases that are over have their room already. The rows of the feeds
-- are locked: two receives could flood it together.
CREATE OR REPLACE FUNCTION beltline._room(p_now bigint, p_queue int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  v_feed record; v_room float8 := 1e9; v_here float8; v_low float8; v_load float8;
BEGIN
  PERFORM FROM beltline.queue q WHERE q.n IN (SELECT feed FROM beltline.feed WHERE queue = p_queue) ORDER BY q.n FOR NO KEY UPDATE;
  FOR v_feed IN SELECT f.feed, f.fan_out, q.high_water, q.low_water FROM beltline.feed f JOIN beltline.queue q ON q.n = f.feed WHERE f.queue = p_queue ORDER BY f.feed LOOP
    PERFORM beltline._turn(p_now, v_feed.feed, (beltline._memo(v_feed.feed))[3], false);
    v_low := least(v_feed.high_water, CASE WHEN v_feed.low_water = 'Infinity' THEN v_feed.high_water / 2 ELSE v_feed.low_water END);
    SELECT sum(CASE WHEN t.queue = v_feed.feed THEN t.ready ELSE 0 END) + sum(t.leased * coalesce(f.fan_out, 0)) INTO v_load FROM (
        SELECT queue, ready, leased FROM beltline.tally WHERE queue = v_feed.feed OR queue IN (SELECT queue FROM beltline.feed WHERE feed = v_feed.feed)
        UNION ALL SELECT queue, ready, leased FROM beltline.delta WHERE queue = v_feed.feed OR queue IN (SELECT queue FROM beltline.feed WHERE feed = v_feed.feed)) t
      LEFT JOIN beltline.feed f ON f.queue = t.queue AND f.feed = v_feed.feed;
    v_load := coalesce(v_load, 0);
    IF v_feed.high_water = 'Infinity' OR v_load <= v_low THEN
      DELETE FROM beltline.stalled WHERE queue = p_queue AND feed = v_feed.feed;
    ELSIF EXISTS (SELECT FROM beltline.stalled WHERE queue = p_queue AND feed = v_feed.feed) THEN
      v_room := 0;
      CONTINUE;
    END IF;
    v_here := CASE WHEN v_feed.high_water = 'Infinity' THEN 1e9 ELSE floor((v_feed.high_water - v_load) / v_feed.fan_out) END;
    IF v_here < 1 AND v_load = 0 THEN
      v_here := 1;   -- one message alone overflows it: better than a line that stands still for ever
    END IF;
    IF v_here < 1 THEN
      INSERT INTO beltline.stalled(queue, feed) VALUES (p_queue, v_feed.feed) ON CONFLICT DO NOTHING;
    END IF;
    v_room := least(v_room, greatest(0, v_here));
  END LOOP;
  RETURN v_room::int;
END $$;

-- kind 0: a delivery. 1: queue `task` is not declared. 2: nothing is there, and time alone will change that at `until` (NULL: not at all).
CREATE OR REPLACE FUNCTION beltline.receive(p_now bigint, p_queues text[], p_limit int, p_lease bigint, p_worker text)
  RETURNS TABLE(kind int, queue int, id uuid, task text, epoch int, failed int, lost int, sent bigint, until bigint, group_epoch bigint, head bytea, body bytea)
  LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := beltline._now(p_now); v_queues int[] := beltline._queues(p_queues); v_until bigint := v_now + p_lease; v_worker int := beltline._worker(p_worker);
  v_count int := 0; v_found int; v_room int; v_again uuid[]; v_next bigint; q record;
  v_memo bigint[]; v_seen bigint[]; v_clock bigint; v_began bigint; v_walked bigint; v_full boolean; v_from bigint; v_tids tid[]; v_lowest bigint;
  g beltline.flow; f record; v_flows boolean; v_shut int[] := '{}'; v_flowed int[] := '{}'; v_opens bigint;
BEGIN
  IF array_position(v_queues, NULL) IS NOT NULL THEN
    RETURN QUERY SELECT 1, 0, NULL::uuid, p_queues[array_position(v_queues, NULL)], 0, 0, 0, 0::bigint, 0::bigint, 0::bigint, NULL::bytea, NULL::bytea;
    RETURN;
  END IF;
  IF cardinality(v_queues) > 1 THEN   -- others may name them in another order: what flow control locks is locked at once, in its own (flow.sql)
    PERFORM FROM beltline.flow x WHERE x.queue = ANY(v_queues) AND (x.shaped OR x.limited OR x.trying) ORDER BY x.queue FOR NO KEY UPDATE;
    PERFORM FROM beltline.flow_limit x WHERE x.name IN (SELECT c.name FROM beltline.flow_claimed c WHERE c.queue = ANY(v_queues)
      UNION SELECT c.name FROM beltline.flow_limited c WHERE c.queue = ANY(v_queues)) ORDER BY x.name FOR NO KEY UPDATE;
  END IF;
  FOR i IN 1..coalesce(cardinality(v_queues), 0) LOOP
    EXIT WHEN v_count >= p_limit;
    v_memo := beltline._memo(v_queues[i]);
    v_seen := v_memo;
    v_clock := extract(epoch FROM clock_timestamp()) * 1000000;
    v_full := v_clock >= v_memo[4];
    v_from := CASE WHEN v_full THEN -9000000000000000000 ELSE v_memo[3] END;
    SELECT o.n, o.paused, o.feeds, o.gated,
        EXISTS (SELECT FROM beltline.delayed d WHERE d.queue = o.n AND d.since BETWEEN v_from AND v_now)
        OR EXISTS (SELECT FROM beltline.blocked b WHERE b.queue = o.n AND b.was = 0 AND b.since BETWEEN v_from AND v_now)
        OR EXISTS (SELECT FROM beltline.ready e WHERE e.queue = o.n AND e.expires IS NOT NULL AND e.expires BETWEEN v_from AND v_now)
        OR EXISTS (SELECT FROM beltline.delayed e WHERE e.queue = o.n AND e.expires IS NOT NULL AND e.expires BETWEEN v_from AND v_now)
        OR EXISTS (SELECT FROM beltline.blocked e WHERE e.queue = o.n AND e.expires IS NOT NULL AND e.expires BETWEEN v_from AND v_now)
        OR o.gated AND EXISTS (SELECT FROM beltline.flow_ready e WHERE e.queue = o.n AND e.expires IS NOT NULL AND e.expires BETWEEN v_from AND v_now) AS turn,
        EXISTS (SELECT FROM beltline.lease l WHERE l.queue = o.n AND l.due BETWEEN v_from AND v_now) AS over
      INTO q FROM beltline.queue o WHERE o.n = v_queues[i];
    CONTINUE WHEN q.paused;
    v_room := NULL;
    v_again := '{}';
    v_flows := false;
    IF q.gated THEN
      g := beltline._gated(v_queues[i]);
      IF greatest(g.snoozed, g.tripped) > v_now THEN
        v_shut := v_shut || q.n;
        v_opens := least(v_opens, greatest(g.snoozed, g.tripped));
        CONTINUE;
      ELSIF g.shaped OR g.limited OR g.trying THEN
        PERFORM beltline._turn(v_now, q.n, v_from) WHERE q.turn;
        SELECT * INTO f FROM beltline._flow_receive(v_now, q.n, p_limit - v_count, p_lease, p_worker, v_worker);
        v_flows := true;
        v_flowed := v_flowed || q.n;
        v_again := f.ids;
        v_room := f.plain;   -- messages without a lane are taken as ever, where nothing else stands
        v_opens := least(v_opens, f.opens);
      END IF;
    END IF;
    IF NOT v_flows AND q.turn THEN
      PERFORM beltline._turn(v_now, q.n, v_from);
    ELSIF NOT v_flows AND NOT q.over AND v_memo[3] < v_now - 3000 THEN   -- two seconds for transactions under way
      v_memo[3] := v_now - 2000;
      v_memo[4] := CASE WHEN v_full THEN v_clock + 1000000 ELSE v_memo[4] END;
    END IF;
    IF NOT v_flows AND q.over THEN
      v_again := ARRAY(SELECT beltline._over(v_now, q.n, p_limit - v_count, p_lease, v_worker, v_from));
    END IF;
    IF v_again <> '{}' THEN
      RETURN QUERY SELECT 0, i, l.id, b.task, l.epoch, l.failed, l.lost, b.sent, l.due, CASE WHEN l.flags & 1 <> 0 THEN nextval('beltline.hand_out') ELSE 0 END, b.head, b.body
        FROM unnest(v_again) WITH ORDINALITY AS a(id, ord) CROSS JOIN LATERAL (SELECT * FROM beltline.lease x WHERE x.id = a.id OFFSET 0) l
          CROSS JOIN LATERAL (SELECT task, sent, head, body FROM beltline.body y WHERE y.id = a.id OFFSET 0) b ORDER BY a.ord;
      GET DIAGNOSTICS v_found = ROW_COUNT;
      v_count := v_count + v_found;
    END IF;
    IF v_flows AND v_room < 1 AND v_count = 0 THEN
      v_opens := least(v_opens, beltline._flow_opens(v_now, q.n, NOT f.starved));
    END IF;
    IF v_room IS NULL THEN
      v_room := p_limit - v_count;
      IF q.feeds AND v_room > 0 THEN
        v_room := least(v_room, beltline._room(v_now, q.n));
      END IF;
    END IF;
    CONTINUE WHEN v_room < 1;
    v_began := extract(epoch FROM clock_timestamp()) * 1000000;
    v_full := v_began >= v_memo[2];
    v_from := CASE WHEN v_full THEN -9000000000000000000 ELSE v_memo[1] END;
    v_walked := pg_stat_get_xact_tuples_returned('beltline.ready_pkey'::regclass);
    SELECT array_agg(x.ctid), min(x.rank) INTO v_tids, v_lowest FROM (
      SELECT r.ctid, r.rank FROM beltline.ready r WHERE r.queue = q.n AND r.rank >= v_from AND (r.expires IS NULL OR r.expires > v_now)
        ORDER BY r.rank, r.seq LIMIT v_room FOR UPDATE SKIP LOCKED) x;
    v_walked := pg_stat_get_xact_tuples_returned('beltline.ready_pkey'::regclass) - v_walked - coalesce(cardinality(v_tids), 0);
    IF v_full THEN   -- dear means: many that are gone were walked through
      v_clock := extract(epoch FROM clock_timestamp()) * 1000000;
      v_memo[2] := CASE WHEN v_walked > 2000 THEN v_clock + greatest(250000, 10 * (v_clock - v_began)) ELSE 0 END;
      v_memo[1] := coalesce(v_lowest, v_now - 2000);
    ELSE
      v_memo[1] := coalesce(v_lowest, v_memo[1]);
    END IF;
    IF v_memo[2] = 0 THEN
      v_memo[1] := v_seen[1];
    END IF;
    IF v_memo <> v_seen THEN
      PERFORM set_config('beltline.q' || q.n, array_to_string(v_memo, ' '), false);
    END IF;
    IF v_tids IS NULL THEN
      IF v_flows THEN
        PERFORM beltline._flow_took(v_now, f.g, 0, false, NULL);
        v_opens := CASE WHEN v_count = 0 THEN least(v_opens, beltline._flow_opens(v_now, q.n, true)) ELSE v_opens END;
      END IF;
      CONTINUE;
    END IF;
    RETURN QUERY
      WITH taken AS (
        DELETE FROM beltline.ready r WHERE r.ctid = ANY(v_tids)
          RETURNING r.id, r.rank, r.seq, r.since, r.epoch, r.failed, r.lost, r.flags, r.why, r.error),
      leased AS (
        INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
          SELECT t.id, v_until, t.rank, t.seq, t.since, v_now, q.n, t.epoch + 1, t.failed, t.lost, v_worker, t.flags, t.error FROM taken t),
      counted AS (
        INSERT INTO beltline.delta SELECT q.n, -count(*), 0, count(*), 0, 0, -count(*) FILTER (WHERE beltline._is_parked(t.why)) FROM taken t HAVING count(*) > 0)
      SELECT 0, i, t.id, b.task, t.epoch + 1, t.failed, t.lost, b.sent, v_until, CASE WHEN t.flags & 1 <> 0 THEN nextval('beltline.hand_out') ELSE 0 END, b.head, b.body
        FROM taken t CROSS JOIN LATERAL (SELECT task, sent, head, body FROM beltline.body x WHERE x.id = t.id OFFSET 0) b ORDER BY t.rank, t.seq;
    GET DIAGNOSTICS v_found = ROW_COUNT;
    v_count := v_count + v_found;
    IF v_flows THEN
      PERFORM beltline._flow_took(v_now, f.g, v_found, v_found = v_room, v_lowest);
    END IF;
  END LOOP;
  IF v_count = 0 THEN
    SELECT min(m) INTO v_next FROM unnest(v_queues) AS n(q), LATERAL (SELECT (beltline._memo(n.q))[3] AS low) k, LATERAL (SELECT least(
      (SELECT min(since) FROM beltline.delayed d WHERE d.queue = n.q AND d.since >= k.low),
      (SELECT min(since) FROM beltline.blocked b WHERE b.queue = n.q AND b.was = 0 AND b.since >= k.low),
      (SELECT min(due) FROM beltline.lease l WHERE l.queue = n.q AND l.due >= CASE WHEN n.q = ANY(v_flowed) THEN v_now + 1 ELSE k.low END)) AS m) s
      WHERE NOT n.q = ANY(v_shut);
    v_next := least(v_next, v_opens);
    RETURN QUERY SELECT 2, 0, NULL::uuid, NULL::text, 0, 0, 0, v_now, v_next, 0::bigint, NULL::bytea, NULL::bytea;
  END IF;
END $$;
