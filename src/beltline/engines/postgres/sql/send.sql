-- The hot verbs are in send.sql, receive.sql and settle.sql (settle and renew). Each is one call, one transaction, set by set; only what is rare goes row by row.
--
-- Plans are made once per connection and kept (force_generic_plan), and may not depend on how large a table was when they were made: every search goes through
-- an index, row by row (seqscan, hash and merge joins off, OFFSET 0 as a fence): to the planner a table that was empty when vacuum looked at it is still empty, and
-- reading its whole index looks cheap.
-- `LIMIT` under `FOR UPDATE SKIP LOCKED` stands in ARRAY(…), which runs once; inside a join it might run again and lock more.
-- What a caller may have done wrong comes back as an answer, never as an error: this may be a transaction of the user's.

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
