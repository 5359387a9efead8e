-- What people do to queues, messages and runs. Each verb is one call and one transaction; those that may touch millions are called in pieces by the engine.
--
-- Every function gives exactly one row, so that the engine can read beside it what was woken. A NULL (or false) in it is an expected refusal.
-- Rows of `blocked` are never changed in place here, always taken out and put back: whoever waited for one finds it gone and looks again.

-- Lock all that these messages stand on, in the order a settle comes by: leases (and the dead), lanes (also those of the same groups in queue
-- p_goal), then what whoever holds a lane may put in its place, then runs (unless nothing ends). Returns the runs, to be judged at the end.
-- A row that moves meanwhile may stay unlocked: this prevents deadlocks, `_remove` decides.
CREATE OR REPLACE FUNCTION beltline._hold(p_ids uuid[], p_goal int DEFAULT NULL, p_with_runs boolean DEFAULT true) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE v_lane record; v_grouped uuid[]; v_runs uuid[];
BEGIN
  PERFORM FROM beltline.lease WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  PERFORM FROM beltline.dead WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  SELECT array_agg(id) FILTER (WHERE flags & 1 <> 0), array_agg(DISTINCT run) FILTER (WHERE flags & 2 <> 0) INTO v_grouped, v_runs
    FROM beltline.body WHERE id = ANY(p_ids) AND flags & 3 <> 0;
  IF v_grouped IS NOT NULL THEN
    FOR v_lane IN
      WITH standing AS MATERIALIZED (SELECT b.group_key, beltline._find(b.id) AS f FROM beltline.body b WHERE b.id = ANY(v_grouped))
      SELECT queue, array_agg(group_key) AS groups FROM (
        SELECT (f).queue, group_key FROM standing WHERE (f).state <> 3 UNION SELECT p_goal, group_key FROM standing WHERE p_goal IS NOT NULL) lanes
      GROUP BY queue ORDER BY queue
    LOOP
      PERFORM beltline._lanes(v_lane.queue, v_lane.groups);
    END LOOP;
  END IF;
  PERFORM FROM beltline.blocked WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  PERFORM FROM beltline.delayed WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  PERFORM FROM beltline.ready WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  PERFORM FROM beltline.flow_ready WHERE id = ANY(p_ids) ORDER BY id FOR UPDATE;
  PERFORM beltline._runs(v_runs) WHERE p_with_runs AND v_runs IS NOT NULL;
  RETURN v_runs;
END $$;

-- End these without a settlement, as far as they stand in one of p_states (2: only a lease that is over), p_expired: and are. Returns how many; one that a
-- failing run took along counts, because it was meant to end.
CREATE OR REPLACE FUNCTION beltline._end_all(p_now bigint, p_ids uuid[], p_states smallint[], p_outcome smallint, p_why text, p_expired boolean DEFAULT false)
  RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_runs uuid[] := beltline._hold(p_ids); v_left int[]; v_count int; v_ready uuid[]; v_leased uuid[]; v_other uuid[]; v_id uuid; f beltline.fact;
BEGIN
  WITH   -- those without group and run, all at once
  r AS (DELETE FROM beltline.ready WHERE id = ANY(p_ids) AND 1 = ANY(p_states) AND flags & 3 = 0 AND (NOT p_expired OR expires <= p_now)
    RETURNING 1 AS state, seq, id, queue, epoch, failed, lost, flags, why, error),
  o AS (DELETE FROM beltline.flow_ready WHERE id = ANY(p_ids) AND 1 = ANY(p_states) AND flags & 3 = 0 AND (NOT p_expired OR expires <= p_now)
    RETURNING 1 AS state, seq, id, queue, epoch, failed, lost, flags, why, error, lane),
  d AS (DELETE FROM beltline.delayed WHERE id = ANY(p_ids) AND 0 = ANY(p_states) AND flags & 3 = 0 AND (NOT p_expired OR expires <= p_now)
    RETURNING 0 AS state, seq, id, queue, epoch, failed, lost, flags, why, error),
  l AS (DELETE FROM beltline.lease WHERE id = ANY(p_ids) AND 2 = ANY(p_states) AND flags & 3 = 0 AND NOT p_expired AND due <= p_now
    RETURNING 2 AS state, seq, id, queue, epoch, failed, lost, flags, NULL::text AS why, error),
  x AS (DELETE FROM beltline.dead WHERE id = ANY(p_ids) AND 4 = ANY(p_states) AND flags & 3 = 0 AND NOT p_expired
    RETURNING 4 AS state, seq, id, queue, epoch, failed, lost, flags, NULL::text AS why, error),
  gone AS (TABLE r UNION ALL SELECT state, seq, id, queue, epoch, failed, lost, flags, why, error FROM o UNION ALL TABLE d UNION ALL TABLE l UNION ALL TABLE x),
  heads AS (INSERT INTO beltline.flow_event(queue, verb, lane, heads) SELECT queue, beltline._verb(), lane, -count(*) FROM o GROUP BY queue, lane),
  counted AS (INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked)
    SELECT queue, -count(*) FILTER (WHERE state = 1), -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 2),
      -count(*) FILTER (WHERE state = 4), count(*), -count(*) FILTER (WHERE beltline._is_parked(why)) FROM gone GROUP BY queue),
  ended AS (INSERT INTO beltline.done(id, ended, seq, queue, epoch, failed, lost, outcome, flags, why, error)
    SELECT id, p_now, seq, queue, epoch, failed, lost, p_outcome, flags, p_why, error FROM gone RETURNING 1)
  SELECT (SELECT count(*) FROM ended), (SELECT array_agg(queue) FROM l), array_agg(id) FILTER (WHERE state = 1), array_agg(id) FILTER (WHERE state = 2),
      array_agg(id) FILTER (WHERE state IN (0, 4)) INTO v_count, v_left, v_ready, v_leased, v_other FROM gone WHERE flags & 8 <> 0;
  PERFORM beltline._left(left_behind.queue, left_behind.count) FROM (SELECT queue, count(*)::int FROM unnest(v_left) AS i(queue) GROUP BY queue) left_behind;
  PERFORM beltline._flow_moved(v_ready, 1, 3) WHERE v_ready IS NOT NULL;
  PERFORM beltline._flow_moved(v_leased, 2, 3) WHERE v_leased IS NOT NULL;
  PERFORM beltline._flow_moved(v_other, 0, 3) WHERE v_other IS NOT NULL;   -- delayed or dead: to a lane it is the same
  IF 2 = ANY(p_states) THEN
    DELETE FROM beltline.asked WHERE id = ANY(p_ids) AND EXISTS (SELECT FROM beltline.done d WHERE d.id = asked.id);
  END IF;
  FOR v_id IN SELECT id FROM beltline.body WHERE id = ANY(p_ids) AND flags & 3 <> 0 ORDER BY seq LOOP
    f := beltline._find(v_id);
    IF f.state = 3 THEN
      v_count := v_count + 1;
    ELSIF f.state = ANY(p_states) AND (f.state <> 2 OR f.due <= p_now) AND (NOT p_expired OR f.expires <= p_now) THEN
      f := beltline._remove(v_id, ARRAY[f.state]);
      IF f.id IS NOT NULL THEN
        PERFORM beltline._left(f.queue, 1) WHERE f.state = 2;
        PERFORM beltline._end(p_now, f, p_outcome, p_why);
        v_count := v_count + 1;
      END IF;
    END IF;
  END LOOP;
  PERFORM beltline._judge(p_now, v_runs) WHERE v_runs IS NOT NULL;
  RETURN v_count;
END $$;

-- The stages before that stand still because of this queue may have room again.
CREATE OR REPLACE FUNCTION beltline._lighter(p_queue int) RETURNS void LANGUAGE sql AS $$ SELECT beltline._woken(queue) FROM beltline.stalled WHERE feed = p_queue $$;

-- Dead letters that match (NULL: any), behind place p_after, first sent first. Planned anew each time: what is NULL drops out of the plan.
CREATE OR REPLACE FUNCTION beltline._dead(
  p_ids uuid[], p_queues text[], p_tasks text[], p_runs uuid[], p_group bytea, p_error text, p_sent_from bigint, p_sent_before bigint,
  p_after bigint, p_limit int,
  OUT ids uuid[], OUT last bigint) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE $sql$
    SELECT coalesce(array_agg(id ORDER BY seq), '{}'), max(seq) FROM (
      SELECT d.id, d.seq FROM beltline.dead d WHERE d.seq > $9
        AND ($1 IS NULL OR d.id = ANY($1))
        AND ($2 IS NULL OR d.queue = ANY(ARRAY(SELECT n FROM beltline.queue WHERE name = ANY($2))))
        AND ($5 IS NULL OR d.group_key = $5)
        AND ($6 IS NULL OR d.error = $6)
        AND (($3 IS NULL AND $4 IS NULL AND $7 IS NULL AND $8 IS NULL) OR EXISTS (SELECT FROM beltline.body b WHERE b.id = d.id
          AND ($3 IS NULL OR b.task = ANY($3)) AND ($4 IS NULL OR b.run = ANY($4)) AND ($7 IS NULL OR b.sent >= $7) AND ($8 IS NULL OR b.sent < $8)))
      ORDER BY d.seq LIMIT $10) found
  $sql$ INTO ids, last USING p_ids, p_queues, p_tasks, p_runs, p_group, p_error, p_sent_from, p_sent_before, p_after, p_limit;
END $$;

-- ------------------------------------------------------------------------------------------------------------- queues
-- p_seen: the version of the declarations the caller has read; the feeds are those of all queues, which only he can read out of the specs. False: somebody
-- else has declared meanwhile, read again. Feeds of queues that nobody has declared yet are left out until somebody does.
CREATE OR REPLACE FUNCTION beltline.declare(
  p_now bigint, p_seen bigint, p_name text[], p_spec bytea[], p_max_backlog float8[], p_high_water float8[], p_low_water float8[], p_ageing_ms bigint[],
  p_max_deliveries int[], p_skip_dead boolean[], p_feed_of text[], p_feed text[], p_fan_out int[], p_flow jsonb[] DEFAULT NULL)
  RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_queue record; v_n int; v_skip boolean; v_turned int[] := '{}'; v_groups bytea[];
BEGIN
  INSERT INTO beltline.meta(key, value) VALUES ('declared', '0') ON CONFLICT DO NOTHING;
  UPDATE beltline.meta SET value = (p_seen + 1)::text WHERE key = 'declared' AND value = p_seen::text;   -- its lock: one declares at a time
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  FOR v_queue IN
    SELECT * FROM unnest(p_name, p_spec, p_max_backlog, p_high_water, p_low_water, p_ageing_ms, p_max_deliveries, p_skip_dead)
      AS q(name, spec, max_backlog, high_water, low_water, ageing_ms, max_deliveries, skip_dead)
  LOOP
    SELECT n, skip_dead INTO v_n, v_skip FROM beltline.queue WHERE name = v_queue.name;
    IF v_n IS NULL THEN
      INSERT INTO beltline.queue(name, spec, max_backlog, high_water, low_water, ageing_ms, max_deliveries, skip_dead, feeds)
        VALUES (v_queue.name, v_queue.spec, v_queue.max_backlog, v_queue.high_water, v_queue.low_water, v_queue.ageing_ms, v_queue.max_deliveries,
          v_queue.skip_dead, false) RETURNING n INTO v_n;
      INSERT INTO beltline.tally(queue, ready, delayed, leased, dead, done, parked) VALUES (v_n, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING;
    ELSE
      UPDATE beltline.queue SET spec = v_queue.spec, max_backlog = v_queue.max_backlog, high_water = v_queue.high_water, low_water = v_queue.low_water,
        ageing_ms = v_queue.ageing_ms, max_deliveries = v_queue.max_deliveries, skip_dead = v_queue.skip_dead WHERE n = v_n;
      IF v_skip <> v_queue.skip_dead THEN
        v_turned := v_turned || v_n;
      END IF;
    END IF;
  END LOOP;
  WITH wanted AS (
    SELECT q.n AS queue, t.n AS feed, sum(greatest(w.fan_out, 1))::int AS fan_out
      FROM unnest(p_feed_of, p_feed, p_fan_out) AS w(queue, feed, fan_out) JOIN beltline.queue q ON q.name = w.queue JOIN beltline.queue t ON t.name = w.feed
      GROUP BY q.n, t.n),
  gone AS (DELETE FROM beltline.feed f WHERE NOT EXISTS (SELECT FROM wanted w WHERE w.queue = f.queue AND w.feed = f.feed)),
  free AS (DELETE FROM beltline.stalled s WHERE NOT EXISTS (SELECT FROM wanted w WHERE w.queue = s.queue AND w.feed = s.feed)),
  put AS (INSERT INTO beltline.feed(queue, feed, fan_out) SELECT queue, feed, fan_out FROM wanted
    ON CONFLICT (queue, feed) DO UPDATE SET fan_out = EXCLUDED.fan_out WHERE feed.fan_out <> EXCLUDED.fan_out)
  UPDATE beltline.queue q SET feeds = NOT q.feeds WHERE q.feeds <> EXISTS (SELECT FROM wanted w WHERE w.queue = q.n);
  PERFORM beltline._flow_declare(q.n, i.flow) FROM unnest(p_name, p_flow) AS i(name, flow) JOIN beltline.queue q ON q.name = i.name WHERE i.flow IS NOT NULL;
  FOREACH v_n IN ARRAY v_turned LOOP
    SELECT array_agg(group_key ORDER BY group_key) INTO v_groups FROM beltline.lane WHERE queue = v_n;
    PERFORM beltline._lanes(v_n, v_groups) WHERE v_groups IS NOT NULL;
    PERFORM beltline._reorder(v_n, g, v_now) FROM unnest(v_groups) g;
  END LOOP;
  PERFORM beltline._woken(n) FROM beltline.queue;   -- a bound may have been lifted
  RETURN true;
END $$;

-- NULL: not declared.
CREATE OR REPLACE FUNCTION beltline.pause(p_now bigint, p_queue text, p_paused boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_n int := (SELECT n FROM beltline.queue WHERE name = p_queue);
BEGIN
  IF v_n IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM beltline._unsealed(seal, 0) FROM beltline.clock;
  UPDATE beltline.queue SET paused = p_paused WHERE n = v_n AND paused <> p_paused;
  PERFORM beltline._reopen(v_n) WHERE NOT p_paused;
  PERFORM beltline._woken(v_n);
  RETURN p_paused;
END $$;

-- One piece: up to p_limit messages of the queue that are neither done nor leased, sent before place p_before (NULL: before now; the answer says which place
-- that is). count NULL: not declared.
CREATE OR REPLACE FUNCTION beltline.purge(p_now bigint, p_queue text, p_before bigint, p_limit int, OUT count int, OUT more boolean, OUT before bigint)
  LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_n int := (SELECT n FROM beltline.queue WHERE name = p_queue); v_ids uuid[];
BEGIN
  IF v_n IS NULL THEN
    RETURN;
  END IF;
  before := coalesce(p_before, (SELECT last_value + 1 FROM beltline.place));
  SELECT array_agg(id) INTO v_ids FROM (
    SELECT id FROM beltline.delayed WHERE queue = v_n AND seq < before
    UNION ALL SELECT id FROM beltline.ready WHERE queue = v_n AND seq < before
    UNION ALL SELECT id FROM beltline.flow_ready WHERE queue = v_n AND seq < before
    UNION ALL SELECT id FROM beltline.blocked WHERE queue = v_n AND seq < before
    UNION ALL SELECT id FROM beltline.dead WHERE queue = v_n AND seq < before
    UNION ALL SELECT id FROM beltline.lease WHERE queue = v_n AND due <= v_now AND seq < before
    LIMIT p_limit) found;
  more := coalesce(cardinality(v_ids), 0) = p_limit;
  count := CASE WHEN v_ids IS NULL THEN 0 ELSE beltline._end_all(v_now, v_ids, '{0,1,2,4}', 2::smallint, 'purged') END;
  PERFORM beltline._lighter(v_n);
END $$;

-- ------------------------------------------------------------------------------------------------------------- messages
-- The state each is in afterwards, NULL if nobody knows it.
CREATE OR REPLACE FUNCTION beltline.cancel(p_now bigint, p_ids uuid[], p_reason text) RETURNS smallint[] LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_runs uuid[] := beltline._hold(p_ids); v_states smallint[] := '{}'; v_id uuid;
BEGIN
  FOREACH v_id IN ARRAY p_ids LOOP   -- one by one: cancelling a part may fail its run and end the next of them
    v_states := array_append(v_states, beltline._drop(v_now, v_id, p_reason));
  END LOOP;
  PERFORM beltline._judge(v_now, v_runs) WHERE v_runs IS NOT NULL;
  RETURN v_states;
END $$;

-- False: no such run. One that has ended, or is given up already, is left as it is.
CREATE OR REPLACE FUNCTION beltline.cancel_run(p_now bigint, p_run uuid, p_reason text) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_state smallint;
BEGIN
  IF NOT EXISTS (SELECT FROM beltline.run WHERE id = p_run) THEN
    RETURN false;
  END IF;
  PERFORM beltline._hold(ARRAY(SELECT b.id FROM beltline.body b WHERE b.run = p_run AND NOT EXISTS (SELECT FROM beltline.done d WHERE d.id = b.id)));
  SELECT state INTO v_state FROM beltline.run WHERE id = p_run FOR NO KEY UPDATE;
  IF v_state IN (0, 2) THEN
    PERFORM beltline._give_up(v_now, p_run, 4::smallint, p_reason);
    PERFORM beltline._judge(v_now, ARRAY[p_run]);
  END IF;
  RETURN v_state IS NOT NULL;
END $$;

-- Delayed messages are ready now. Returns how many were not yet.
CREATE OR REPLACE FUNCTION beltline.hurry(p_now bigint, p_ids uuid[]) RETURNS int LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_count int := 0; v_id uuid; f beltline.fact; v_group bytea;
BEGIN
  PERFORM beltline._hold(p_ids, NULL, false);
  FOR v_id IN SELECT id FROM beltline.body WHERE id = ANY(p_ids) ORDER BY seq LOOP
    f := beltline._find(v_id);
    CONTINUE WHEN f.state IS DISTINCT FROM 0 OR f.since <= v_now;
    f := beltline._remove(v_id, '{0}');
    CONTINUE WHEN f.id IS NULL;
    PERFORM beltline._moved(f.queue, 0, 1, CASE WHEN beltline._is_parked(f.why) THEN -1 ELSE 0 END);
    SELECT beltline._rank(f.queue, v_now, prio), group_key INTO f.rank, v_group FROM beltline.body WHERE id = v_id;
    f.state := 1; f.since := v_now; f.why := NULL;
    PERFORM beltline._flow_moved(ARRAY[v_id], 0, 1) WHERE f.flags & 8 <> 0;
    IF f.blocked THEN
      PERFORM beltline._put_blocked(f, f.queue, v_group);
    ELSE
      PERFORM beltline._put_ready(v_now, f, f.queue);
    END IF;
    PERFORM beltline._woken(f.queue);
    v_count := v_count + 1;
  END LOOP;
  RETURN v_count;
END $$;

-- One piece: up to p_limit dead letters behind place p_after are ready again, in queue p_target (NULL: their own). ids: those redriven, first sent first;
-- last: where to go on, 0 at the end. NULL: the target is not declared. Those of a run that was given up stay dead.
CREATE OR REPLACE FUNCTION beltline.redrive(
  p_now bigint, p_ids uuid[], p_queues text[], p_tasks text[], p_runs uuid[], p_group bytea, p_error text, p_sent_from bigint, p_sent_before bigint,
  p_limit int, p_target text, p_after bigint, OUT ids uuid[], OUT last bigint) LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
  v_now bigint := beltline._now(p_now); v_goal int; v_found uuid[]; v_runs uuid[]; v_queue int; f beltline.fact; b record; v_to int;
BEGIN
  IF p_target IS NOT NULL THEN
    SELECT n INTO v_goal FROM beltline.queue WHERE name = p_target;
    IF v_goal IS NULL THEN
      RETURN;
    END IF;
  END IF;
  SELECT d.ids, d.last INTO v_found, last
    FROM beltline._dead(p_ids, p_queues, p_tasks, p_runs, p_group, p_error, p_sent_from, p_sent_before, p_after, p_limit) d;
  last := CASE WHEN cardinality(v_found) = p_limit THEN last ELSE 0 END;
  ids := '{}';
  v_runs := beltline._hold(v_found, v_goal);
  FOR b IN SELECT id, run, gather, part, prio, group_key FROM beltline.body WHERE id = ANY(v_found) ORDER BY seq LOOP
    CONTINUE WHEN b.run IS NOT NULL AND beltline._given_up(b.run);
    f := beltline._remove(b.id, '{4}');
    CONTINUE WHEN f.id IS NULL;
    PERFORM beltline._note(v_now, f, 'redrive', 0, coalesce(f.why, ''), NULL);
    IF b.run IS NOT NULL THEN
      PERFORM beltline._run_add(b.run, 1, CASE WHEN beltline._counts_as_dead(b.gather) THEN -1 ELSE 0 END, NULL);
      PERFORM beltline._revive(b.gather, b.part) WHERE b.gather IS NOT NULL;
    END IF;
    v_queue := f.queue;
    v_to := coalesce(v_goal, v_queue);
    f.state := 1; f.queue := v_to; f.rank := beltline._rank(v_to, v_now, b.prio); f.since := v_now;
    f.failed := 0; f.lost := 0; f.why := NULL; f.expires := NULL;
    IF v_to = v_queue THEN
      PERFORM beltline._moved(v_to, 4, 1);
    ELSE
      PERFORM beltline._count(v_queue, 0, 0, 0, -1, 0, 0), beltline._count(v_to, 1, 0, 0, 0, 0, 0);
    END IF;
    PERFORM beltline._flow_redriven(f.id, v_to, b.prio) WHERE f.flags & 8 <> 0;
    IF b.group_key IS NULL THEN
      PERFORM beltline._put_ready(v_now, f, v_to);
    ELSE   -- it stands behind first; then the right one stands in the queue
      PERFORM beltline._put_blocked(f, v_to, b.group_key);
      PERFORM beltline._reorder(v_queue, b.group_key, v_now);
      PERFORM beltline._reorder(v_to, b.group_key, v_now) WHERE v_to <> v_queue;
    END IF;
    ids := array_append(ids, b.id);
  END LOOP;
  DELETE FROM beltline.asked WHERE id = ANY(ids);
  PERFORM beltline._woken(queue) FROM (SELECT queue FROM beltline.ready WHERE id = ANY(ids) UNION SELECT queue FROM beltline.flow_ready WHERE id = ANY(ids)) woken;
  PERFORM beltline._judge(v_now, v_runs) WHERE v_runs IS NOT NULL;
END $$;

-- One piece: end dead letters for good, first sent first.
CREATE OR REPLACE FUNCTION beltline.delete_dead(
  p_now bigint, p_ids uuid[], p_queues text[], p_tasks text[], p_runs uuid[], p_group bytea, p_error text, p_sent_from bigint, p_sent_before bigint,
  p_limit int, OUT count int, OUT more boolean) LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); v_found uuid[];
BEGIN
  SELECT d.ids INTO v_found FROM beltline._dead(p_ids, p_queues, p_tasks, p_runs, p_group, p_error, p_sent_from, p_sent_before, 0, p_limit) d;
  count := beltline._end_all(v_now, v_found, '{4}', 2::smallint, 'deleted');
  more := cardinality(v_found) = p_limit;
END $$;

-- Replace the body of a dead or delayed message; p_body NULL: only look. -1: it can be, or is, edited; else the state it is shown in; NULL: nobody knows it.
CREATE OR REPLACE FUNCTION beltline.edit(p_now bigint, p_id uuid, p_body bytea) RETURNS smallint LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_now bigint := beltline._now(p_now); f beltline.fact; v_size int;
BEGIN
  PERFORM FROM beltline.dead WHERE id = p_id FOR UPDATE;
  PERFORM FROM beltline.blocked WHERE id = p_id FOR UPDATE;
  PERFORM FROM beltline.delayed WHERE id = p_id FOR UPDATE;
  f := beltline._find(p_id);
  IF f.state = 4 OR f.state = 0 AND f.since > v_now THEN
    IF p_body IS NOT NULL THEN
      SELECT octet_length(body) INTO v_size FROM beltline.body WHERE id = p_id;
      PERFORM beltline._note(v_now, f, 'edited', 0, 'the body before had ' || v_size || ' bytes', NULL);
      UPDATE beltline.body SET body = p_body WHERE id = p_id;
    END IF;
    RETURN -1;
  END IF;
  RETURN CASE WHEN f.state = 0 OR f.state = 2 AND f.due <= v_now THEN 1 ELSE f.state END;
END $$;

-- ------------------------------------------------------------------------------------------------------------- deliveries and workers
-- Per note: whether the receipt held, and so was written. Of two notes of one delivery the last one stays.
CREATE OR REPLACE FUNCTION beltline.progress(p_ids uuid[], p_epochs int[], p_values bytea[]) RETURNS boolean[] LANGUAGE plpgsql
  SET enable_seqscan = off SET jit = off AS $$
DECLARE v_held uuid[]; v_answers boolean[];
BEGIN
  PERFORM beltline._unsealed(seal, 1) FROM beltline.clock;
  SELECT array_agg(id) INTO v_held FROM (
    SELECT l.id FROM beltline.lease l JOIN unnest(p_ids, p_epochs) AS n(id, epoch) ON n.id = l.id AND n.epoch = l.epoch ORDER BY l.id FOR KEY SHARE OF l) held;
  WITH notes AS (
    SELECT i.id, i.value, i.ord, l.id IS NOT NULL AS held FROM unnest(p_ids, p_epochs, p_values) WITH ORDINALITY AS i(id, epoch, value, ord)
      LEFT JOIN beltline.lease l ON l.id = i.id AND l.epoch = i.epoch AND l.id = ANY(v_held)),
  kept AS (
    INSERT INTO beltline.progress(id, value) SELECT DISTINCT ON (id) id, value FROM notes WHERE held ORDER BY id, ord DESC
      ON CONFLICT (id) DO UPDATE SET value = EXCLUDED.value)
  SELECT array_agg(held ORDER BY ord) INTO v_answers FROM notes;
  RETURN v_answers;
END $$;

-- up, queues: who may keep sticky keys of which queues.
CREATE OR REPLACE FUNCTION beltline.beat(p_now bigint, p_id text, p_data bytea, p_up boolean DEFAULT false, p_queues text[] DEFAULT '{}') RETURNS void LANGUAGE sql AS $$
  INSERT INTO beltline.worker(id, seen, data, up, queues) VALUES (p_id, beltline._now(p_now, 1), p_data, p_up, p_queues)
    ON CONFLICT (id) DO UPDATE SET seen = EXCLUDED.seen, data = EXCLUDED.data, up = EXCLUDED.up, queues = EXCLUDED.queues
$$;

CREATE OR REPLACE FUNCTION beltline.forget(p_now bigint, p_id text) RETURNS void LANGUAGE sql AS $$ DELETE FROM beltline.worker WHERE id = p_id $$;
