-- What nobody waits for: what receives would do anyway, the end of history, and the sums of the counters. All in pieces, none ever needed for correctness.
--
-- The memory of an id goes over from `body` to `known` in two calls: one puts it into `known`, a later one deletes its body. So a send that repeats it
-- finds it in one of the two. Until its body is gone, `ended` stands in `known` as ~ended, which is below 0: these are found by the index.

-- Queues that time has something for: the engine calls `sweep` for each.
CREATE OR REPLACE FUNCTION beltline.to_sweep(p_now bigint) RETURNS int[] LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now);
BEGIN
  RETURN ARRAY(SELECT n FROM beltline.queue q WHERE NOT paused AND NOT (gated AND beltline._shut_until(n) > v_now) AND (
    EXISTS (SELECT FROM beltline.delayed WHERE queue = q.n AND since <= v_now)
    OR EXISTS (SELECT FROM beltline.blocked WHERE queue = q.n AND was = 0 AND since <= v_now)
    OR EXISTS (SELECT FROM beltline.ready WHERE queue = q.n AND expires IS NOT NULL AND expires <= v_now)
    OR EXISTS (SELECT FROM beltline.delayed WHERE queue = q.n AND expires IS NOT NULL AND expires <= v_now)
    OR EXISTS (SELECT FROM beltline.blocked WHERE queue = q.n AND expires IS NOT NULL AND expires <= v_now)
    OR gated AND EXISTS (SELECT FROM beltline.flow_ready WHERE queue = q.n AND expires IS NOT NULL AND expires <= v_now)
    OR EXISTS (SELECT FROM beltline.lease l WHERE queue = q.n AND due <= v_now
      AND (lost + 1 >= q.max_deliveries OR EXISTS (SELECT FROM beltline.asked a WHERE a.id = l.id)))) ORDER BY n);
END $$;

-- Due -> ready, expired -> done, poison -> dead, asked for and over -> cancelled. A lease that may be handed out again is left to the next receive.
CREATE OR REPLACE FUNCTION beltline.sweep(p_now bigint, p_queue int) RETURNS int LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now bigint := beltline._now(p_now); v_max int; v_paused boolean; v_count int; v_ids uuid[]; v_runs uuid[]; v_id uuid; f beltline.fact; v_reason text;
BEGIN
  SELECT max_deliveries, paused INTO v_max, v_paused FROM beltline.queue WHERE n = p_queue;
  IF v_paused IS DISTINCT FROM false OR beltline._shut_until(p_queue) > v_now THEN
    RETURN 0;
  END IF;
  v_count := beltline._turn(v_now, p_queue);
  PERFORM beltline._woken(p_queue) WHERE v_count > 0;
  SELECT array_agg(id ORDER BY due, seq) INTO v_ids FROM (
    SELECT id, due, seq FROM beltline.lease l WHERE queue = p_queue AND due <= v_now
      AND (lost + 1 >= v_max OR EXISTS (SELECT FROM beltline.asked a WHERE a.id = l.id)) ORDER BY due, seq LIMIT 2000) over;
  IF v_ids IS NULL THEN
    RETURN v_count;
  END IF;
  v_runs := beltline._hold(v_ids);
  FOREACH v_id IN ARRAY v_ids LOOP
    SELECT reason INTO v_reason FROM beltline.asked WHERE id = v_id;
    f := beltline._find(v_id);
    CONTINUE WHEN f.state IS DISTINCT FROM 2 OR f.due > v_now OR (v_reason IS NULL AND f.lost + 1 < v_max);   -- renewed, settled or handed out meanwhile
    f := beltline._remove(v_id, '{2}');
    CONTINUE WHEN f.id IS NULL;
    PERFORM beltline._left(p_queue, 1);
    PERFORM beltline._note(v_now, f, 'lost', 0, '', beltline._lease_over());
    f.lost := f.lost + 1;
    IF v_reason IS NOT NULL THEN
      PERFORM beltline._end(v_now, f, 2::smallint, v_reason);
    ELSE
      PERFORM beltline._die(v_now, f, 'poison: ' || f.lost || ' deliveries never answered', '', beltline._lease_over());
    END IF;
    v_count := v_count + 1;
  END LOOP;
  PERFORM beltline._judge(v_now, v_runs) WHERE v_runs IS NOT NULL;
  PERFORM beltline._lighter(p_queue);
  RETURN v_count;
END $$;

-- One piece: at most p_limit of each kind. count: messages, runs, results and keys that were dropped; more: some kind filled its piece.
CREATE OR REPLACE FUNCTION beltline.retain(p_now bigint, p_history bigint, p_limit int, OUT count int, OUT more boolean) LANGUAGE plpgsql
  SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now bigint := beltline._now(p_now); v_old bigint := v_now - p_history; v_forget bigint := v_now - 24 * 3600 * 1000;
  v_ids uuid[]; v_forgotten uuid[]; v_count int;
BEGIN
  -- Bodies whose ids an earlier call has put into `known`.
  WITH put AS (UPDATE beltline.known SET ended = ~ended
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.known WHERE ended < 0 LIMIT p_limit FOR UPDATE SKIP LOCKED)) RETURNING id)
    SELECT array_agg(id) INTO v_ids FROM put;
  DELETE FROM beltline.body WHERE id = ANY(v_ids);
  more := coalesce(cardinality(v_ids), 0) = p_limit;

  SELECT array_agg(id), array_agg(id) FILTER (WHERE ended <= v_forget) INTO v_ids, v_forgotten FROM (
    SELECT id, ended FROM beltline.done WHERE ended < v_old ORDER BY ended LIMIT p_limit FOR UPDATE SKIP LOCKED) old;
  count := coalesce(cardinality(v_ids), 0);
  more := more OR count = p_limit;
  IF count > 0 THEN
    INSERT INTO beltline.known(id, ended) SELECT id, ~ended FROM beltline.done WHERE id = ANY(v_ids) AND ended > v_forget ON CONFLICT DO NOTHING;
    DELETE FROM beltline.done WHERE id = ANY(v_ids);
    DELETE FROM beltline.attempt WHERE id = ANY(v_ids);
    DELETE FROM beltline.progress WHERE id = ANY(v_ids);
    DELETE FROM beltline.asked WHERE id = ANY(v_ids);
    DELETE FROM beltline.flow_unique WHERE id = ANY(v_ids);
    DELETE FROM beltline.body WHERE id = ANY(v_forgotten);
  END IF;
  DELETE FROM beltline.known
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.known WHERE ended >= 0 AND ended <= v_forget LIMIT p_limit FOR UPDATE SKIP LOCKED));

  SELECT array_agg(id) INTO v_ids FROM (
    SELECT id FROM beltline.run WHERE ended > 0 AND ended < v_old AND open = 0 AND dead = 0 ORDER BY ended LIMIT p_limit FOR UPDATE SKIP LOCKED) old;
  IF v_ids IS NOT NULL THEN
    DELETE FROM beltline.gather_part WHERE gather = ANY(ARRAY(SELECT id FROM beltline.gather WHERE run = ANY(v_ids)));
    DELETE FROM beltline.gather WHERE run = ANY(v_ids);
    WITH gone AS (DELETE FROM beltline.run WHERE id = ANY(v_ids) RETURNING chain, counted)
      INSERT INTO beltline.run_delta(chain, state, count) SELECT chain, counted, -count(*) FROM gone WHERE counted >= 0 GROUP BY chain, counted;
    count := count + cardinality(v_ids);
    more := more OR cardinality(v_ids) = p_limit;
  END IF;

  -- Results whose time is over. That there was one stays known by result_until.
  UPDATE beltline.done SET result = NULL
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.done WHERE result IS NOT NULL AND result_until <= v_now LIMIT p_limit FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_count = ROW_COUNT;
  count := count + v_count;
  more := more OR v_count = p_limit;
  UPDATE beltline.run SET result = NULL
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.run WHERE result IS NOT NULL AND result_until <= v_now LIMIT p_limit FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_count = ROW_COUNT;
  count := count + v_count;
  more := more OR v_count = p_limit;

  DELETE FROM beltline.dedup WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.dedup WHERE until <= v_now LIMIT p_limit FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_count = ROW_COUNT;
  count := count + v_count;
  more := more OR v_count = p_limit;

  -- Groups nobody stands in. A lane without a head says nothing that could not be found again: whoever needs it makes it anew.
  DELETE FROM beltline.lane WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.lane l WHERE head IS NULL
    AND NOT EXISTS (SELECT FROM beltline.blocked b WHERE b.queue = l.queue AND b.group_key = l.group_key) LIMIT p_limit FOR UPDATE SKIP LOCKED));

  PERFORM beltline._flow_tidy(v_now, queue, p_limit) FROM beltline.flow;
END $$;

-- The insert-only counters become sums again: one at a time, whoever comes second has nothing to do. Returns how many rows went.
CREATE OR REPLACE FUNCTION beltline.rollup(p_now bigint) RETURNS int LANGUAGE plpgsql SET jit = off AS $$
DECLARE v_count int; v_runs int;
BEGIN
  IF NOT (SELECT pg_try_advisory_xact_lock(1111837780, tableoid::int) FROM beltline.clock) THEN   -- "BELT", and this schema's own
    RETURN 0;
  END IF;
  WITH gone AS (DELETE FROM beltline.delta WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.delta LIMIT 100000)) RETURNING *),
  summed AS (INSERT INTO beltline.tally AS t (queue, ready, delayed, leased, dead, done, parked)
    SELECT queue, sum(ready), sum(delayed), sum(leased), sum(dead), sum(done), sum(parked) FROM gone GROUP BY queue ORDER BY queue
    ON CONFLICT (queue) DO UPDATE SET ready = t.ready + EXCLUDED.ready, delayed = t.delayed + EXCLUDED.delayed, leased = t.leased + EXCLUDED.leased,
      dead = t.dead + EXCLUDED.dead, done = t.done + EXCLUDED.done, parked = t.parked + EXCLUDED.parked)
  SELECT count(*) INTO v_count FROM gone;
  WITH gone AS (DELETE FROM beltline.run_delta WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.run_delta LIMIT 100000)) RETURNING *),
  summed AS (INSERT INTO beltline.run_tally AS t (chain, state, count) SELECT chain, state, sum(count) FROM gone GROUP BY chain, state ORDER BY chain, state
    ON CONFLICT (chain, state) DO UPDATE SET count = t.count + EXCLUDED.count)
  SELECT count(*) INTO v_runs FROM gone;
  RETURN v_count + v_runs;
END $$;
