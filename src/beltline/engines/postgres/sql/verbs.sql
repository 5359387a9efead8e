-- The four hot verbs: send, receive, settle, renew. Each is one call, one transaction, set by set; only what is rare goes row by row.
--
-- Plans are made once per connection and kept (force_generic_plan), and may not depend on how large a table was when they were made: every search goes through
-- an index, row by row (seqscan, hash and merge joins off, OFFSET 0 as a fence): to the planner a table that was empty when vacuum looked at it is still empty, and
-- reading its whole index looks cheap.
-- `LIMIT` under `FOR UPDATE SKIP LOCKED` stands in ARRAY(…), which runs once; inside a join it might run again and lock more.
-- What a caller may have done wrong comes back as an answer, never as an error: this may be a transaction of the user's.

-- ------------------------------------------------------------------------------------------------------------- send
-- Messages as one array of items. An array that is NULL: all at their default. p_queues, p_tasks, p_chains: the distinct ones; p_queue, p_task, p_chain: which
-- of them, from 1 (NULL: the first). p_parent: what becomes `ord` (NULL: the place in the batch).
CREATE OR REPLACE FUNCTION beltline._items(
  p_queues int[], p_tasks text[], p_chains text[], p_parent int[], p_id uuid[], p_queue int[], p_task int[], p_prio smallint[], p_due bigint[], p_delay bigint[],
  p_expires bigint[], p_group bytea[], p_dedup bytea[], p_dedup_ms bigint[], p_run uuid[], p_chain int[], p_gather uuid[], p_part int[], p_head bytea[],
  p_body bytea[], p_flow jsonb[] DEFAULT NULL) RETURNS beltline.item[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN (SELECT array_agg(ROW(coalesce(i.parent, i.ord::int), i.id, p_queues[coalesce(i.queue, 1)], coalesce(i.prio, 0::smallint), i.due, i.delay, i.expires, i.dedup_ms, i.part, i.run, i.gather,
      p_tasks[coalesce(i.task, 1)], CASE WHEN i.run IS NOT NULL THEN p_chains[coalesce(i.chain, 1)] END, i.group_key, i.dedup, i.head, i.body, i.flow)::beltline.item ORDER BY i.ord)
  FROM unnest(p_parent, p_id, p_queue, p_task, p_prio, p_due, p_delay, p_expires, p_group, p_dedup, p_dedup_ms, p_run, p_chain, p_gather, p_part, p_head, p_body, p_flow)
    WITH ORDINALITY AS i(parent, id, queue, task, prio, due, delay, expires, group_key, dedup, dedup_ms, run, chain, gather, part, head, body, flow, ord));
END $$;

-- Write them, in this order, ids known before left out. Returns the ids that are new. Their runs are the caller's business.
CREATE OR REPLACE FUNCTION beltline._store(p_now bigint, p_items beltline.item[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE v_ids uuid[]; v_grouped boolean; v_shaped boolean; v_lane record;
BEGIN
  SELECT bool_or(group_key IS NOT NULL), bool_or(flow IS NOT NULL AND beltline._is_shaped(flow)) INTO v_grouped, v_shaped FROM unnest(p_items);
  IF v_grouped THEN   -- the lock of a lane is held to the commit and `seq` drawn behind it: the order of a group is the order of the commits
    FOR v_lane IN SELECT queue, array_agg(group_key) AS groups FROM unnest(p_items) WHERE group_key IS NOT NULL GROUP BY queue ORDER BY queue LOOP
      PERFORM beltline._lanes(v_lane.queue, v_lane.groups);
    END LOOP;
  END IF;
  IF v_shaped THEN
    PERFORM beltline._flow_lanes(array_agg(queue), array_agg(flow), array_agg(prio)) FROM unnest(p_items) WHERE beltline._is_shaped(flow);
  END IF;
  WITH new AS (
    INSERT INTO beltline.body(id, seq, sent, queue, prio, flags, due, expires, part, run, gather, task, group_key, head, body)
      SELECT i.id, nextval('beltline.place'), p_now, i.queue, i.prio,
          (i.group_key IS NOT NULL)::int + 2 * (i.run IS NOT NULL)::int + 4 * (i.gather IS NOT NULL)::int
            + 8 * (i.flow IS NOT NULL AND beltline._is_shaped(i.flow))::int,
          CASE WHEN i.due > p_now THEN i.due WHEN i.due IS NULL AND i.delay > 0 THEN p_now + i.delay END, p_now + i.expires,
          i.part, i.run, i.gather, i.task, i.group_key, i.head, i.body
        FROM unnest(p_items) WITH ORDINALITY AS i(ord, id, queue, prio, due, delay, expires, dedup_ms, part, run, gather, task, chain, group_key, dedup, head, body, flow, place)
        WHERE NOT EXISTS (SELECT FROM beltline.known k WHERE k.id = i.id)
      ON CONFLICT (id) DO NOTHING
      RETURNING id, seq, queue, prio, flags, due, expires, group_key),
  own AS (
    SELECT coalesce(n.due, p_now) - n.prio * q.ageing_ms AS rank, n.seq, coalesce(n.due, p_now) AS since, n.id, n.queue, n.flags, n.expires, n.due IS NOT NULL AS late, n.group_key
      FROM new n JOIN beltline.queue q ON q.n = n.queue),
  r AS (INSERT INTO beltline.ready(rank, seq, since, id, queue, epoch, failed, lost, flags, expires)
    SELECT rank, seq, since, id, queue, 0, 0, 0, flags, expires FROM own WHERE flags & 9 = 0 AND NOT late),
  d AS (INSERT INTO beltline.delayed(rank, seq, since, id, queue, epoch, failed, lost, flags, expires)
    SELECT rank, seq, since, id, queue, 0, 0, 0, flags, expires FROM own WHERE flags & 1 = 0 AND late),
  b AS (INSERT INTO beltline.blocked(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, was, group_key)
    SELECT rank, seq, since, id, queue, 0, 0, 0, flags, expires, CASE WHEN late THEN 0 ELSE 1 END, group_key FROM own WHERE flags & 1 <> 0),
  c AS (INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked)
    SELECT queue, count(*) FILTER (WHERE NOT late), count(*) FILTER (WHERE late), 0, 0, 0, 0 FROM own GROUP BY queue)
  SELECT coalesce(array_agg(id), '{}') INTO v_ids FROM own;
  IF v_shaped AND v_ids <> '{}' THEN
    PERFORM beltline._flow_store(p_now, p_items, v_ids);
  END IF;
  IF v_grouped AND v_ids <> '{}' THEN
    FOR v_lane IN SELECT DISTINCT queue, group_key FROM unnest(p_items) WHERE group_key IS NOT NULL LOOP
      PERFORM beltline._reorder(v_lane.queue, v_lane.group_key, p_now);
    END LOOP;
  END IF;
  RETURN v_ids;
END $$;

-- `p_items` without those that were not new, and each once.
CREATE OR REPLACE FUNCTION beltline._only(p_items beltline.item[], p_ids uuid[]) RETURNS beltline.item[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN (SELECT CASE WHEN cardinality(p_ids) = cardinality(p_items) THEN p_items
    ELSE (SELECT array_agg(ROW(i.*)::beltline.item) FROM (SELECT DISTINCT ON (i.id) i.* FROM unnest(p_items) i JOIN unnest(p_ids) n(id) ON n.id = i.id ORDER BY i.id, i.ord) i) END);
END $$;

-- New messages count in their runs; one that was given up is open again. Returns the runs that were there before: their state is to be judged.
CREATE OR REPLACE FUNCTION beltline._enter(p_now bigint, p_items beltline.item[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE v_runs uuid[];
BEGIN
  WITH entered AS (
    INSERT INTO beltline.run(id, entered, ended, open, dead, state, counted, last, touched, chain)
      SELECT run, p_now, 0, count(*), 0, 0, 0, 0, false, min(chain) FROM unnest(p_items) i WHERE run IS NOT NULL GROUP BY run ORDER BY run
      ON CONFLICT (id) DO UPDATE SET open = run.open + EXCLUDED.open, touched = true, state = CASE WHEN run.state >= 3 THEN 0 ELSE run.state END
      RETURNING id, chain, touched),
  counted AS (INSERT INTO beltline.run_delta(chain, state, count) SELECT chain, 0, count(*) FROM entered WHERE NOT touched GROUP BY chain)
  SELECT array_agg(id) FILTER (WHERE touched) INTO v_runs FROM entered;
  RETURN v_runs;
END $$;

-- Messages that follow something: never refused, counted in their runs, hinted at.
CREATE OR REPLACE FUNCTION beltline._hand_on(p_now bigint, p_items beltline.item[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_new beltline.item[];
BEGIN
  v_new := beltline._only(p_items, beltline._store(p_now, p_items));
  PERFORM beltline._enter(p_now, v_new) WHERE EXISTS (SELECT FROM unnest(v_new) WHERE run IS NOT NULL);
  PERFORM beltline._woken(queue) FROM (SELECT DISTINCT queue FROM unnest(v_new)) q;
END $$;

-- Open these gathers, unless they are there. Their runs are locked. Returns them as they are complete or not: the caller fires them when their parts are stored.
CREATE OR REPLACE FUNCTION beltline._open(p_now bigint, p_gathers beltline.opened[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE v_ids uuid[];
BEGIN
  INSERT INTO beltline.run(id, entered, ended, open, dead, state, counted, last, touched, chain)
    SELECT run, p_now, 0, 0, 0, 0, -1, 0, true, min(coalesce(chain, '')) FROM unnest(p_gathers) GROUP BY run ORDER BY run ON CONFLICT (id) DO NOTHING;
  PERFORM beltline._runs(array_agg(run)) FROM unnest(p_gathers);
  WITH new AS (
    INSERT INTO beltline.gather(id, run, outer_gather, ttl, expected, missing, dead, outer_part, on_dead, fired, data, then_item, prefix, suffix)
      SELECT id, run, outer_gather, ttl, expected, expected, 0, outer_part, on_dead, false, data, CASE WHEN (then_item).id IS NOT NULL THEN then_item END, prefix, suffix
      FROM unnest(p_gathers) ON CONFLICT (id) DO NOTHING RETURNING id)
  SELECT array_agg(id) INTO v_ids FROM new;
  RETURN v_ids;
END $$;

CREATE OR REPLACE FUNCTION beltline._gathers(p_items beltline.item[], p_parent int[], p_id uuid[], p_run uuid[], p_chain text[], p_expected int[], p_on_dead smallint[], p_outer uuid[],
  p_outer_part int[], p_ttl bigint[], p_data bytea[], p_then int[], p_prefix bytea[], p_suffix bytea[]) RETURNS beltline.opened[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN (SELECT array_agg(ROW(g.parent, g.id, g.run, g.chain, g.expected, g.on_dead, g.outer_gather, g.outer_part, g.ttl, g.data,
      CASE WHEN g.next IS NOT NULL THEN p_items[g.next] END, g.prefix, g.suffix)::beltline.opened ORDER BY g.ord)
  FROM unnest(p_parent, p_id, p_run, p_chain, p_expected, p_on_dead, p_outer, p_outer_part, p_ttl, p_data, p_then, p_prefix, p_suffix)
    WITH ORDINALITY AS g(parent, id, run, chain, expected, on_dead, outer_gather, outer_part, ttl, data, next, prefix, suffix, ord));
END $$;

-- The numbers of these queues, in this order; NULL for one that nobody has declared.
CREATE OR REPLACE FUNCTION beltline._queues(p_names text[]) RETURNS int[] LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT array_agg(q.n ORDER BY i.ord) FROM unnest(p_names) WITH ORDINALITY AS i(name, ord) LEFT JOIN beltline.queue q ON q.name = i.name);
END $$;

CREATE OR REPLACE FUNCTION beltline._backlog(p_queue int) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT coalesce((SELECT ready + delayed + leased FROM beltline.tally WHERE queue = p_queue), 0)
    + coalesce((SELECT sum(ready + delayed + leased) FROM beltline.delta WHERE queue = p_queue), 0)::bigint);
END $$;

CREATE OR REPLACE FUNCTION beltline._send(p_now bigint, p_items beltline.item[], p_gathers beltline.opened[], p_bounded boolean) RETURNS SETOF beltline.answer LANGUAGE plpgsql AS $$
DECLARE
  v_known uuid[] := '{}'; v_took uuid[] := '{}'; v_keyed boolean; v_unique boolean; v_others beltline.answer[]; v_admitted beltline.item[] := p_items; v_new beltline.item[]; v_ids uuid[]; v_runs uuid[]; v_opened uuid[]; v_over record;
BEGIN
  SELECT bool_or(dedup_ms > 0), bool_or(flow IS NOT NULL AND flow ? 'u') INTO v_keyed, v_unique FROM unnest(p_items);
  IF v_unique THEN
    SELECT a.admitted, a.answers INTO v_admitted, v_others FROM beltline._admit(p_now, p_items) a;
  ELSIF v_keyed THEN
    SELECT coalesce(array_agg(i.id), '{}') INTO v_known FROM unnest(p_items) i
      WHERE EXISTS (SELECT FROM beltline.body b WHERE b.id = i.id) OR EXISTS (SELECT FROM beltline.known k WHERE k.id = i.id);
    WITH first AS (
      SELECT DISTINCT ON (i.queue, i.dedup) i.queue, i.dedup, i.id, i.dedup_ms FROM unnest(p_items) i
        WHERE i.dedup_ms > 0 AND NOT i.id = ANY(v_known) ORDER BY i.queue, i.dedup, i.ord),
    took AS (
      INSERT INTO beltline.dedup AS d (queue, key, id, until) SELECT queue, dedup, id, p_now + dedup_ms FROM first
        ON CONFLICT (queue, key) DO UPDATE SET id = EXCLUDED.id, until = EXCLUDED.until WHERE d.until <= p_now RETURNING d.id)
    SELECT coalesce(array_agg(id), '{}') INTO v_took FROM took;
    SELECT array_agg(ROW(i.*)::beltline.item ORDER BY i.ord) INTO v_admitted FROM unnest(p_items) i
      WHERE NOT i.id = ANY(v_known) AND (coalesce(i.dedup_ms, 0) <= 0 OR i.id = ANY(v_took));
  END IF;
  v_ids := beltline._store(p_now, v_admitted);
  v_new := beltline._only(v_admitted, v_ids);
  IF p_bounded THEN
    FOR v_over IN SELECT q.name, q.max_backlog FROM (SELECT queue, min(ord) AS ord FROM unnest(v_new) GROUP BY queue) i JOIN beltline.queue q ON q.n = i.queue
        WHERE beltline._backlog(q.n) > q.max_backlog ORDER BY i.ord LOOP
      RAISE EXCEPTION '%', v_over.name USING ERRCODE = 'BL001', DETAIL = v_over.max_backlog::text;
    END LOOP;
  END IF;
  IF p_gathers IS NOT NULL THEN
    v_opened := beltline._open(p_now, p_gathers);
  END IF;
  IF EXISTS (SELECT FROM unnest(v_new) WHERE run IS NOT NULL) THEN
    v_runs := beltline._enter(p_now, v_new);
  END IF;
  IF p_gathers IS NOT NULL THEN
    PERFORM beltline._fire_if_complete(p_now, g) FROM unnest(v_opened) g;
    SELECT array_agg(run) || v_runs INTO v_runs FROM unnest(p_gathers);
  END IF;
  IF v_runs IS NOT NULL THEN
    PERFORM beltline._judge(p_now, v_runs);
  END IF;
  IF v_unique THEN
    PERFORM beltline._replace(p_now, a.id, ROW(i.*)::beltline.item, a.text) FROM unnest(v_others) a JOIN unnest(p_items) i ON i.ord = a.ord WHERE a.code = 3 ORDER BY a.ord;
    RETURN QUERY SELECT a.code, a.ord, a.id, NULL::text, NULL::float8 FROM unnest(v_others) a;
  ELSIF v_keyed OR cardinality(v_ids) < coalesce(cardinality(p_items), 0) THEN
    RETURN QUERY SELECT 1, i.ord, i.id, NULL::text, NULL::float8 FROM unnest(p_items) i
      WHERE NOT i.id = ANY(v_ids) AND (i.id = ANY(v_known) OR coalesce(i.dedup_ms, 0) <= 0 OR i.id = ANY(v_took));
    RETURN QUERY SELECT 2, i.ord, d.id, NULL::text, NULL::float8 FROM unnest(p_items) i JOIN beltline.dedup d ON d.queue = i.queue AND d.key = i.dedup
      WHERE i.dedup_ms > 0 AND NOT i.id = ANY(v_known) AND NOT i.id = ANY(v_took);
  END IF;
END $$;

-- No row: all are stored. code 1: this id was sent before; 2: `id` stands for it by its dedup or unique key; 3: and has taken over what it says; 10: queue `text` is not declared; 11: queue `text` is full (its
-- bound is `number`); 12: the queues are moving, `text` is the seal: nothing is written. Ids in one call differ. The last p_templates items are what gathers send. p_guest: in a transaction of the user's.
CREATE OR REPLACE FUNCTION beltline.send(p_now bigint, p_guest boolean, p_queues text[], p_tasks text[], p_chains text[], p_templates int,
  p_id uuid[], p_queue int[], p_task int[], p_prio smallint[], p_due bigint[], p_delay bigint[], p_expires bigint[], p_group bytea[], p_dedup bytea[],
  p_dedup_ms bigint[], p_run uuid[], p_chain int[], p_gather uuid[], p_part int[], p_head bytea[], p_body bytea[],
  g_id uuid[], g_run uuid[], g_chain text[], g_expected int[], g_on_dead smallint[], g_outer uuid[], g_outer_part int[], g_ttl bigint[], g_data bytea[], g_then int[],
  g_prefix bytea[], g_suffix bytea[], p_flow jsonb[] DEFAULT NULL)
  RETURNS SETOF beltline.answer LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
  v_now bigint := CASE WHEN p_guest THEN beltline._time(p_now) ELSE beltline._now(p_now) END;
  v_queues int[] := beltline._queues(p_queues);
  v_items beltline.item[]; v_gathers beltline.opened[]; v_bounded boolean; v_bound text;
BEGIN
  IF p_guest THEN   -- what this transaction stores is promised to be durable
    PERFORM set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN ('off', 'local');
    IF (SELECT seal FROM beltline.clock) > 0 THEN
      RETURN NEXT (12, 0, NULL, beltline._seal(), NULL)::beltline.answer;
      RETURN;
    END IF;
  END IF;
  IF array_position(v_queues, NULL) IS NOT NULL THEN
    RETURN NEXT (10, 0, NULL, p_queues[array_position(v_queues, NULL)], NULL)::beltline.answer;
    RETURN;
  END IF;
  v_items := beltline._items(v_queues, p_tasks, p_chains, NULL, p_id, p_queue, p_task, p_prio, p_due, p_delay, p_expires, p_group, p_dedup, p_dedup_ms, p_run, p_chain, p_gather,
    p_part, p_head, p_body, p_flow);
  IF g_id IS NOT NULL THEN
    v_gathers := beltline._gathers(v_items, NULL, g_id, g_run, g_chain, g_expected, g_on_dead, g_outer, g_outer_part, g_ttl, g_data, g_then, g_prefix, g_suffix);
    v_items := v_items[1 : coalesce(cardinality(v_items), 0) - p_templates];
  END IF;
  SELECT bool_or(max_backlog < 'Infinity') INTO v_bounded FROM beltline.queue WHERE n = ANY(v_queues);
  IF NOT coalesce(v_bounded, false) THEN
    RETURN QUERY SELECT * FROM beltline._send(v_now, v_items, v_gathers, false);
    RETURN;
  END IF;
  PERFORM FROM beltline.queue WHERE n = ANY(v_queues) AND max_backlog < 'Infinity' ORDER BY n FOR NO KEY UPDATE;   -- two senders could pass the bound together
  BEGIN
    RETURN QUERY SELECT * FROM beltline._send(v_now, v_items, v_gathers, true);
  EXCEPTION WHEN SQLSTATE 'BL001' THEN
    GET STACKED DIAGNOSTICS v_bound = PG_EXCEPTION_DETAIL;
    RETURN NEXT (11, 0, NULL, SQLERRM, v_bound::float8)::beltline.answer;
  END;
END $$;

-- ------------------------------------------------------------------------------------------------------------- receive
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
      DELETE FROM beltline.lease WHERE id = f.id AND epoch = f.epoch;
      CONTINUE WHEN NOT FOUND;   -- it went with its run
      PERFORM beltline._note(p_now, f, 'lost', 0, '', beltline._lease_over());
      f.lost := f.lost + 1;
      IF v_reason IS NOT NULL THEN
        PERFORM beltline._end(p_now, f, 2::smallint, v_reason);
      ELSE
        PERFORM beltline._die(p_now, f, 'poison: ' || f.lost || ' deliveries never answered', '', beltline._lease_over());
      END IF;
      PERFORM beltline._judge_of(p_now, ARRAY[f.id]);
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

-- ------------------------------------------------------------------------------------------------------------- settle
-- Back to its queue, unless its cancellation was asked for. p_keep: to the place it had. The fact has been taken out of `lease`.
CREATE OR REPLACE FUNCTION beltline._back(p_now bigint, f beltline.fact, p_delay bigint, p_why text, p_keep boolean, p_error text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_reason text; v_parked int := CASE WHEN beltline._is_parked(p_why) THEN 1 ELSE 0 END;
BEGIN
  SELECT reason INTO v_reason FROM beltline.asked WHERE id = f.id;
  IF v_reason IS NOT NULL THEN
    PERFORM beltline._end(p_now, f, 2::smallint, v_reason);
    RETURN;
  END IF;
  IF NOT p_keep THEN
    f.since := p_now + p_delay;
    SELECT beltline._rank(f.queue, f.since, prio) INTO f.rank FROM beltline.body WHERE id = f.id;
  END IF;
  f.why := p_why;
  f.error := coalesce(p_error, f.error);
  PERFORM beltline._flow_moved(ARRAY[f.id], 2, CASE WHEN f.since <= p_now THEN 1 ELSE 0 END) WHERE f.flags & 8 <> 0;
  IF f.since <= p_now THEN
    PERFORM beltline._put_ready(p_now, f, f.queue), beltline._moved(f.queue, 2, 1, v_parked), beltline._woken(f.queue);
  ELSE
    PERFORM beltline._put_delayed(f, f.queue), beltline._moved(f.queue, 2, 0, v_parked), beltline._woken(f.queue);
  END IF;
  PERFORM beltline._lane_moves_on(p_now, f);   -- one that was redriven meanwhile may stand before it
END $$;

-- An ack that is more than the end of a message and its hand-off: of a group, or of a part of a gather, or with gathers of its own.
-- p_carried: what follows still has the duty to answer its part.
CREATE OR REPLACE FUNCTION beltline._ack(p_now bigint, f beltline.fact, p_ended smallint, p_ran float8, p_result bytea, p_ttl bigint, p_note text, p_part bytea, p_carried boolean,
  p_then beltline.item[], p_gathers beltline.opened[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_run uuid; v_gather uuid; v_part int; v_opened uuid[];
BEGIN
  SELECT run, gather, part INTO v_run, v_gather, v_part FROM beltline.body WHERE id = f.id;
  INSERT INTO beltline.done(id, ended, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result)
    VALUES (f.id, p_now, f.started, f.seq, CASE WHEN v_run IS NULL AND p_result IS NOT NULL THEN p_now + p_ttl END, f.queue, f.epoch, f.failed, f.lost, f.worker, p_ran, p_ended,
      f.flags, p_note, f.error, CASE WHEN v_run IS NULL THEN p_result END);
  PERFORM beltline._moved(f.queue, 2, 3);
  PERFORM beltline._flow_moved(ARRAY[f.id], 2, 3) WHERE f.flags & 8 <> 0;
  DELETE FROM beltline.asked WHERE id = f.id;
  PERFORM beltline._lane_moves_on(p_now, f);
  IF v_run IS NOT NULL THEN
    PERFORM beltline._runs(ARRAY[v_run]);
    PERFORM beltline._run_add(v_run, -1, 0, p_ended);
    IF beltline._given_up(v_run) THEN
      RETURN;
    END IF;
    IF p_result IS NOT NULL THEN
      UPDATE beltline.run SET result = p_result, result_until = p_now + p_ttl WHERE id = v_run;
    END IF;
  END IF;
  IF p_gathers IS NOT NULL THEN
    v_opened := beltline._open(p_now, p_gathers);
  END IF;
  IF p_then IS NOT NULL THEN
    PERFORM beltline._hand_on(p_now, p_then);
  END IF;
  PERFORM beltline._fire_if_complete(p_now, g) FROM unnest(v_opened) g;
  IF v_gather IS NOT NULL THEN
    IF p_part IS NOT NULL THEN
      PERFORM beltline._answer(p_now, v_gather, v_part, p_part);
    ELSIF NOT p_carried THEN
      PERFORM beltline._absent(p_now, v_gather, v_part, p_ended <> 1);
    END IF;
  END IF;
END $$;

-- Acks in one go: no group, no part, no gathers. p_ids: the messages, p_ords: their places in the batch. Their rows in `done` are written. Returns runs to be judged.
CREATE OR REPLACE FUNCTION beltline._pass(p_now bigint, p_ids uuid[], p_ords int[], p_ended smallint[], p_result bytea[], p_ttl bigint[], p_then beltline.item[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
  v_runs uuid[]; v_mine uuid[]; v_foreign uuid[] := '{}'; v_others uuid[]; v_then beltline.item[] := p_then; v_new beltline.item[];
  v_whole boolean := cardinality(p_ords) = cardinality(p_ended);   -- else pick: reading one value of a long array walks through those before it
  v_ended smallint[] := CASE WHEN v_whole THEN p_ended ELSE ARRAY(SELECT p_ended[o] FROM unnest(p_ords) o) END;
  v_result bytea[] := CASE WHEN v_whole OR p_result IS NULL THEN p_result ELSE ARRAY(SELECT p_result[o] FROM unnest(p_ords) o) END;
  v_ttl bigint[] := CASE WHEN v_whole OR p_ttl IS NULL THEN p_ttl ELSE ARRAY(SELECT p_ttl[o] FROM unnest(p_ords) o) END;
BEGIN
  SELECT array_agg(b.run ORDER BY i.ord) INTO v_runs FROM unnest(p_ids) WITH ORDINALITY AS i(id, ord) CROSS JOIN LATERAL (SELECT run FROM beltline.body x WHERE x.id = i.id OFFSET 0) b;
  v_mine := array_remove(v_runs, NULL);
  IF v_mine <> '{}' THEN
    PERFORM beltline._runs(v_mine);
    IF p_then IS NOT NULL AND EXISTS (SELECT FROM beltline.run WHERE id = ANY(v_mine) AND state >= 3) THEN   -- what they would hand on is dropped
      SELECT array_agg(ROW(t.*)::beltline.item ORDER BY t.ord) INTO v_then FROM unnest(p_then) t
        WHERE NOT EXISTS (SELECT FROM unnest(v_runs, p_ords) r(run, ord) JOIN beltline.run u ON u.id = r.run WHERE r.ord = t.ord AND u.state >= 3);
    END IF;
  END IF;
  IF v_then IS NOT NULL THEN
    v_new := beltline._only(v_then, beltline._store(p_now, v_then));
    PERFORM beltline._woken(queue) FROM (SELECT DISTINCT queue FROM unnest(v_new)) q;
    v_foreign := ARRAY(SELECT run FROM unnest(v_new) WHERE run IS NOT NULL EXCEPT SELECT unnest(v_mine));
    IF v_foreign <> '{}' THEN   -- hardly ever: a hand-off into another run
      v_others := beltline._enter(p_now, (SELECT array_agg(ROW(n.*)::beltline.item) FROM unnest(v_new) n WHERE run = ANY(v_foreign)));
    END IF;
  END IF;
  IF v_mine = '{}' THEN
    RETURN v_others;
  END IF;
  -- A linear hand-off, one gone and one come, changes nothing in its run, so nothing is written.
  WITH net AS (
    SELECT run, sum(change) AS change, max(ended) AS ended, (array_agg(result) FILTER (WHERE result IS NOT NULL))[1] AS result,
        (array_agg(ttl) FILTER (WHERE result IS NOT NULL))[1] AS ttl FROM (
      SELECT r.run, -1 AS change, r.ended, r.result, r.ttl FROM unnest(v_runs, v_ended, v_result, v_ttl) r(run, ended, result, ttl) WHERE r.run IS NOT NULL
      UNION ALL SELECT n.run, 1, NULL, NULL, NULL FROM unnest(v_new) n WHERE n.run IS NOT NULL AND (v_foreign = '{}' OR NOT n.run = ANY(v_foreign))) changes
    GROUP BY run),
  judged AS (
    SELECT u.id, u.counted AS before, n.change, n.ended, CASE WHEN u.state < 3 THEN n.result END AS result, n.ttl,
        CASE WHEN u.state >= 3 THEN u.state WHEN u.open + n.change > 0 THEN 0 WHEN u.dead > 0 THEN 2 WHEN coalesce(n.ended, u.last) IN (2, 3) THEN 4 ELSE 1 END AS state
      FROM net n CROSS JOIN LATERAL (SELECT * FROM beltline.run x WHERE x.id = n.run OFFSET 0) u WHERE n.change <> 0 OR n.result IS NOT NULL),
  written AS (
    UPDATE beltline.run r SET open = r.open + j.change, last = coalesce(j.ended, r.last), state = j.state, counted = j.state,
        ended = CASE WHEN j.state = j.before THEN r.ended WHEN j.state IN (0, 2) THEN 0 ELSE p_now END,
        result = coalesce(j.result, r.result), result_until = CASE WHEN j.result IS NULL THEN r.result_until ELSE p_now + j.ttl END
      FROM judged j WHERE r.id = j.id RETURNING r.chain, j.before, j.state)
  INSERT INTO beltline.run_delta(chain, state, count)
    SELECT chain, state, sum(change) FROM (
      SELECT chain, state, 1 AS change FROM written WHERE state <> before UNION ALL SELECT chain, before, -1 FROM written WHERE state <> before AND before >= 0) changes
    GROUP BY chain, state HAVING sum(change) <> 0;
  RETURN v_others;
END $$;

-- A mixed batch: op 0 ack, 1 retry, 2 release, 3 dead-letter. `done`: the places of those that took effect; a receipt that is not among them had lost its lease and has
-- written nothing. `refused`: a hand-off names a queue that is not declared; nothing is written. The last p_templates items are what gathers send. Ids in one call differ.
CREATE OR REPLACE FUNCTION beltline.settle(p_now bigint, p_guest boolean, s_id uuid[], s_epoch int[], s_ran float8[], s_op smallint[], s_ended smallint[], s_delay bigint[], s_lost boolean[],
  s_result bytea[], s_ttl bigint[], s_part bytea[], s_note text[], s_error text[], s_failure bytea[], c_parent int[], c_gather uuid[], c_part int[],
  p_queues text[], p_tasks text[], p_chains text[], p_templates int, p_parent int[],
  p_id uuid[], p_queue int[], p_task int[], p_prio smallint[], p_due bigint[], p_delay bigint[], p_expires bigint[], p_group bytea[], p_dedup bytea[],
  p_dedup_ms bigint[], p_run uuid[], p_chain int[], p_gather uuid[], p_part int[], p_head bytea[], p_body bytea[],
  g_parent int[], g_id uuid[], g_run uuid[], g_chain text[], g_expected int[], g_on_dead smallint[], g_outer uuid[], g_outer_part int[], g_ttl bigint[], g_data bytea[],
  g_then int[], g_prefix bytea[], g_suffix bytea[], s_snooze bigint[] DEFAULT NULL, p_flow jsonb[] DEFAULT NULL)
  RETURNS TABLE(done int[], woken text, refused text) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := CASE WHEN p_guest THEN beltline._time(p_now) ELSE beltline._now(p_now, 1) END;
  v_queues int[] := beltline._queues(p_queues);
  v_items beltline.item[]; v_gathers beltline.opened[]; v_then beltline.item[];
  v_done int[]; v_runs uuid[]; v_rest beltline.fact[]; v_ord int[]; v_fast boolean[]; f beltline.fact; o int; i int := 1; j int;
  v_ended smallint[] := coalesce(s_ended, array_fill(1::smallint, ARRAY[coalesce(cardinality(s_id), 0)]));
  v_lost boolean; v_whole boolean; v_mine beltline.opened[]; v_laned uuid[];
BEGIN
  IF p_guest THEN
    PERFORM set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN ('off', 'local');
  END IF;
  PERFORM set_config('beltline.woken', '', true);
  IF p_guest AND (SELECT seal FROM beltline.clock) > 1 THEN   -- the queues have moved: this delivery is over
    RETURN QUERY SELECT '{}'::int[], '', NULL::text;
    RETURN;
  END IF;
  IF array_position(v_queues, NULL) IS NOT NULL THEN
    RETURN QUERY SELECT '{}'::int[], '', p_queues[array_position(v_queues, NULL)];
    RETURN;
  END IF;
  IF p_id IS NOT NULL THEN
    v_items := beltline._items(v_queues, p_tasks, p_chains, p_parent, p_id, p_queue, p_task, p_prio, p_due, p_delay, p_expires, p_group, p_dedup, p_dedup_ms, p_run, p_chain,
      p_gather, p_part, p_head, p_body, p_flow);
  END IF;
  IF g_id IS NOT NULL THEN
    v_gathers := beltline._gathers(v_items, g_parent, g_id, g_run, g_chain, g_expected, g_on_dead, g_outer, g_outer_part, g_ttl, g_data, g_then, g_prefix, g_suffix);
    v_items := v_items[1 : coalesce(cardinality(v_items), 0) - p_templates];
  END IF;
  -- Held: looked up one by one, whatever the planner believes of the table (OFFSET 0), and locked. `simple`: acks without group, part and gathers.
  SELECT array_agg(h.ord ORDER BY h.ord), array_agg(h.f ORDER BY h.ord), array_agg(h.simple ORDER BY h.ord) INTO v_done, v_rest, v_fast FROM (
    SELECT s.ord::int AS ord, coalesce(s.op, 0) = 0 AND l.flags & 5 = 0 AND NOT coalesce(s.ord = ANY(g_parent), false) AS simple,
        ROW(2, false, l.queue, l.seq, l.id, l.rank, l.since, l.epoch, l.failed, l.lost, l.flags, NULL, NULL, l.error, l.due, l.started, l.worker)::beltline.fact AS f
      FROM unnest(s_id, s_epoch, s_op) WITH ORDINALITY AS s(id, epoch, op, ord)
        CROSS JOIN LATERAL (SELECT * FROM beltline.lease x WHERE x.id = s.id AND x.epoch = s.epoch OFFSET 0 FOR UPDATE) l) h;
  IF v_done IS NULL THEN
    RETURN QUERY SELECT '{}'::int[], '', NULL::text;
    RETURN;
  END IF;
  v_whole := cardinality(v_done) = cardinality(s_id);
  IF s_snooze IS NOT NULL OR EXISTS (SELECT FROM beltline.queue q WHERE q.n = ANY(ARRAY(SELECT DISTINCT r.queue FROM unnest(v_rest) r)) AND q.gated) THEN
    PERFORM beltline._flow_settled(v_now, v_rest, v_done, s_ran, s_op, s_snooze);
    SELECT array_agg(r.id) INTO v_laned FROM unnest(v_rest, v_fast) AS r(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple)
      WHERE r.simple AND r.flags & 8 <> 0;
    PERFORM beltline._flow_moved(v_laned, 2, 3) WHERE v_laned IS NOT NULL;
  END IF;
  WITH simple AS MATERIALIZED (
    SELECT f.* FROM unnest(v_rest, v_fast,
        CASE WHEN v_whole THEN s_ran ELSE ARRAY(SELECT s_ran[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole THEN v_ended ELSE ARRAY(SELECT v_ended[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_result IS NULL THEN s_result ELSE ARRAY(SELECT s_result[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_ttl IS NULL THEN s_ttl ELSE ARRAY(SELECT s_ttl[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_note IS NULL THEN s_note ELSE ARRAY(SELECT s_note[o] FROM unnest(v_done) o) END)
      AS f(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple, ran, outcome, result, ttl, note)
      WHERE simple),
  gone AS (DELETE FROM beltline.lease l WHERE l.id = ANY(ARRAY(SELECT id FROM simple))),
  finished AS (
    INSERT INTO beltline.done(id, ended, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result)
      SELECT id, v_now, started, seq, CASE WHEN flags & 2 = 0 AND result IS NOT NULL THEN v_now + ttl END, queue, epoch, failed, lost, worker, ran, outcome, flags, note, error,
        CASE WHEN flags & 2 = 0 THEN result END FROM simple)
  INSERT INTO beltline.delta SELECT queue, 0, 0, -count(*), 0, count(*), 0 FROM simple GROUP BY queue;
  -- What is not simple stays leased until its turn: what an earlier one hands on into the same group must find it standing there.
  SELECT array_agg(r.ord ORDER BY r.ord), array_agg(r.simple ORDER BY r.ord),
      array_agg(ROW(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker)::beltline.fact ORDER BY r.ord)
    INTO v_ord, v_fast, v_rest FROM unnest(v_rest, v_fast, v_done)
      AS r(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple, ord)
    WHERE NOT r.simple OR r.flags & 2 <> 0 OR coalesce(r.ord = ANY(p_parent), false);
  IF EXISTS (SELECT FROM beltline.asked) THEN   -- an ack stands
    DELETE FROM beltline.asked a WHERE a.id IN (SELECT s_id[d] FROM unnest(v_done) d WHERE coalesce(s_op[d], 0) = 0);
  END IF;
  -- In the order given: one that fails its run takes away what later ones would hand on. Neighbours that are simple go together.
  WHILE i <= coalesce(cardinality(v_rest), 0) LOOP
    IF v_fast[i] THEN
      j := i;
      WHILE j < cardinality(v_rest) AND v_fast[j + 1] LOOP
        j := j + 1;
      END LOOP;
      v_then := v_items;
      IF i > 1 OR j < cardinality(v_rest) OR cardinality(v_done) < cardinality(s_id) THEN
        SELECT array_agg(ROW(t.*)::beltline.item) INTO v_then FROM unnest(v_items) t WHERE t.ord = ANY(v_ord[i : j]);
      END IF;
      v_runs := v_runs || beltline._pass(v_now, ARRAY(SELECT r.id FROM unnest(v_rest[i : j]) r), v_ord[i : j], v_ended, s_result, s_ttl, v_then);
      i := j + 1;
      CONTINUE;
    END IF;
    f := v_rest[i];
    o := v_ord[i];
    i := i + 1;
    DELETE FROM beltline.lease WHERE id = f.id;
    IF f.flags & 2 <> 0 THEN
      SELECT array_append(v_runs, run) INTO v_runs FROM beltline.body WHERE id = f.id;
    END IF;
    v_lost := coalesce(s_lost[o], false);
    CASE coalesce(s_op[o], 0)
    WHEN 0 THEN
      SELECT array_agg(ROW(t.*)::beltline.item) INTO v_then FROM unnest(v_items) t WHERE t.ord = o;
      SELECT array_agg(ROW(g.*)::beltline.opened) INTO v_mine FROM unnest(v_gathers) g WHERE g.ord = o;
      PERFORM beltline._ack(v_now, f, coalesce(s_ended[o], 1::smallint), s_ran[o], s_result[o], s_ttl[o], s_note[o], s_part[o],
        EXISTS (SELECT FROM unnest(c_parent, c_gather, c_part) c(ord, gather, part) JOIN beltline.body b ON b.gather = c.gather AND b.part = c.part WHERE c.ord = o AND b.id = f.id),
        v_then, v_mine);
    WHEN 2 THEN
      PERFORM beltline._note(v_now, f, 'release', 0, coalesce(s_note[o], ''), NULL);
      PERFORM beltline._back(v_now, f, s_delay[o], coalesce(s_note[o], ''), s_delay[o] <= 0, NULL);
    WHEN 1 THEN
      IF v_lost AND f.lost + 1 >= (SELECT max_deliveries FROM beltline.queue WHERE n = f.queue) THEN
        PERFORM beltline._note(v_now, f, 'dead_letter', s_ran[o], 'poison: ' || f.lost + 1 || ' deliveries never answered', s_failure[o]);
        f.lost := f.lost + 1;
        PERFORM beltline._die(v_now, f, 'poison: ' || f.lost || ' deliveries never answered', s_error[o], s_failure[o]);
      ELSE
        PERFORM beltline._note(v_now, f, CASE WHEN v_lost THEN 'lost' ELSE 'retry' END, s_ran[o], '', s_failure[o]);
        f.lost := f.lost + v_lost::int;
        f.failed := f.failed + (NOT v_lost)::int;
        PERFORM beltline._back(v_now, f, s_delay[o], coalesce(s_note[o], ''), false, s_error[o]);
      END IF;
    WHEN 3 THEN
      PERFORM beltline._note(v_now, f, 'dead_letter', s_ran[o], s_note[o], s_failure[o]);
      f.lost := f.lost + v_lost::int;
      f.failed := f.failed + (NOT v_lost)::int;
      PERFORM beltline._die(v_now, f, s_note[o], s_error[o], s_failure[o]);
    END CASE;
  END LOOP;
  IF v_runs IS NOT NULL THEN
    PERFORM beltline._judge(v_now, v_runs);
  END IF;
  RETURN QUERY SELECT coalesce(v_done, '{}'), current_setting('beltline.woken', true), NULL::text;
END $$;

-- `place`: of the receipts that still hold; `asked`: somebody wants it to stop.
CREATE OR REPLACE FUNCTION beltline.renew(p_now bigint, p_id uuid[], p_epoch int[], p_lease bigint) RETURNS TABLE(place int, asked boolean) LANGUAGE plpgsql
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE v_now bigint := beltline._now(p_now, 1); v_until bigint := v_now + p_lease; v_ids uuid[]; v_ords int[]; v_late int[];
BEGIN
  SELECT array_agg(l.id), array_agg(r.ord::int), array_agg(DISTINCT l.queue) FILTER (WHERE l.due <= v_now) INTO v_ids, v_ords, v_late
    FROM unnest(p_id, p_epoch) WITH ORDINALITY AS r(id, epoch, ord)
      CROSS JOIN LATERAL (SELECT id, due, queue FROM beltline.lease x WHERE x.id = r.id AND x.epoch = r.epoch OFFSET 0 FOR UPDATE) l;
  IF EXISTS (SELECT FROM beltline.queue WHERE n = ANY(v_late) AND gated) THEN
    SELECT k.ids, k.ords INTO v_ids, v_ords FROM beltline._flow_renewed(v_now, v_until, v_late, v_ids, v_ords) k;
  END IF;
  UPDATE beltline.lease SET due = v_until WHERE id = ANY(v_ids);
  RETURN QUERY SELECT h.ord, EXISTS (SELECT FROM beltline.asked a WHERE a.id = h.id) FROM unnest(v_ids, v_ords) h(id, ord);
END $$;
